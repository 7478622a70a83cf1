#include "textflag.h"

// func reaperCode() unsafe.Pointer
TEXT ·reaperCode(SB), NOSPLIT|NOFRAME, $0-8
	MOVD	$reaper<>(SB), R0
	MOVD	R0, ret+0(FP)
	RET

// reaper is a program of its own: it is copied into a file and executed there, so it refers to nothing
// outside itself. All signals are blocked; it waits for SIGCHLD and reaps, and ends on SIGTERM or SIGINT.
TEXT reaper<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVD	$167, R8        // prctl
	MOVD	$15, R0         // PR_SET_NAME
	MOVD	8(RSP), R1      // argv[0]
	SVC
	MOVD	$167, R8
	MOVD	$4, R0          // PR_SET_DUMPABLE: no ptrace by an equal user id
	MOVD	ZR, R1
	SVC
	SUB	$64, RSP, RSP

reapAll:
	MOVD	$260, R8        // wait4
	MOVD	$-1, R0
	MOVD	ZR, R1
	MOVD	$0x40000001, R2 // __WALL|WNOHANG
	MOVD	ZR, R3
	SVC
	CMP	$0, R0
	BGT	reapAll

	MOVD	$0x14002, R9    // SIGCHLD (17), SIGTERM (15), SIGINT (2)
	MOVD	R9, 0(RSP)
	MOVD	$137, R8        // rt_sigtimedwait
	MOVD	RSP, R0
	MOVD	ZR, R1
	MOVD	ZR, R2
	MOVD	$8, R3
	SVC
	CMP	$15, R0
	BEQ	end
	CMP	$2, R0
	BNE	reapAll

end:
	MOVD	$94, R8         // exit_group
	MOVD	ZR, R0
	SVC
	B	end
