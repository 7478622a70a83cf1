#include "textflag.h"

// func reaperCode() unsafe.Pointer
TEXT ·reaperCode(SB), NOSPLIT|NOFRAME, $0-8
	LEAQ	reaper<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// reaper is a program of its own: it is copied into a file and executed there, so it refers to nothing
// outside itself. All signals are blocked; it waits for SIGCHLD and reaps, and ends on SIGTERM or SIGINT.
TEXT reaper<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ	$157, AX     // prctl
	MOVQ	$15, DI      // PR_SET_NAME
	MOVQ	8(SP), SI    // argv[0]
	SYSCALL
	MOVQ	$157, AX
	MOVQ	$4, DI       // PR_SET_DUMPABLE: no ptrace by an equal user id
	XORL	SI, SI
	SYSCALL

reapAll:
	MOVQ	$61, AX      // wait4
	MOVQ	$-1, DI
	XORL	SI, SI
	MOVQ	$0x40000001, DX // __WALL|WNOHANG
	XORL	R10, R10
	SYSCALL
	TESTQ	AX, AX
	JGT	reapAll

	MOVQ	$0x14002, AX // SIGCHLD (17), SIGTERM (15), SIGINT (2)
	MOVQ	AX, -64(SP)  // no handler runs, so below the stack pointer is free
	MOVQ	$128, AX     // rt_sigtimedwait
	LEAQ	-64(SP), DI
	XORL	SI, SI
	XORL	DX, DX
	MOVQ	$8, R10
	SYSCALL
	CMPQ	AX, $15
	JEQ	end
	CMPQ	AX, $2
	JNE	reapAll

end:
	MOVQ	$231, AX     // exit_group
	XORL	DI, DI
	SYSCALL
	JMP	end
