#include "textflag.h"

// Offsets of rawProgram and rawCall are those of walk.go; spawn_test.go holds them together.
// Between system calls the kernel keeps every register but AX, CX and R11.

// func cloneAndWalk(args *cloneArgs, size uintptr, p *rawProgram) (r uintptr)
TEXT ·cloneAndWalk(SB), NOSPLIT|NOFRAME, $0-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	p+16(FP), R12
	MOVQ	$435, AX // clone3
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, r+24(FP)
	RET

child:
	JMP	·walkCalls(SB)

// func walk(p *rawProgram)
TEXT ·walk(SB), NOSPLIT|NOFRAME, $0-8
	MOVQ	p+0(FP), R12
	JMP	·walkCalls(SB)

// walkCalls makes the calls of the program at R12 and never returns. It touches no stack: after
// CLONE_VM that stack is the suspended parent's.
TEXT ·walkCalls(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ	0(R12), R13 // the call
	MOVQ	8(R12), R15 // calls left
	MOVQ	$2, BX      // the errno kept from tolerated failures: ENOENT before there is one

next:
	TESTQ	R15, R15
	JEQ	done
	MOVQ	0(R13), AX
	MOVQ	8(R13), DI
	MOVQ	16(R13), SI
	MOVQ	24(R13), DX
	MOVQ	32(R13), R10
	MOVQ	40(R13), R8
	MOVQ	48(R13), R9
	CMPQ	AX, $-3
	JCC	pseudo
	SYSCALL

result:
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	MOVQ	56(R13), CX
	TESTQ	CX, CX
	JEQ	stored
	MOVQ	AX, (CX)

stored:
	TESTQ	AX, AX
	JEQ	advance
	MOVQ	80(R13), CX // of a fork: how many calls are the child's only

pass:
	SUBQ	CX, R15
	IMULQ	$96, CX
	ADDQ	CX, R13

advance:
	ADDQ	$96, R13
	DECQ	R15
	JMP	next

failed:
	NEGQ	AX
	CMPQ	AX, $64
	JCC	fatal
	MOVQ	64(R13), DX
	BTQ	AX, DX
	JCC	fatal
	MOVQ	88(R13), CX
	CMPQ	0(R13), $59 // execve
	JNE	pass
	CMPQ	BX, $13 // EACCES outweighs what follows, as in execvp(3)
	JEQ	pass
	MOVQ	AX, BX
	JMP	pass

pseudo:
	CMPQ	AX, $-1
	JEQ	giveup
	CMPQ	AX, $-3
	JEQ	expect
	MOVQ	DI, AX
	JMP	result

expect:
	XORL	AX, AX
	ANDQ	(DI), SI
	CMPQ	SI, DX
	JEQ	result
	SUBQ	R10, AX
	JMP	result

giveup:
	MOVQ	BX, AX

fatal:
	MOVQ	AX, 32(R12)
	MOVQ	8(R12), CX
	SUBQ	R15, CX
	MOVQ	CX, 24(R12)
	MOVQ	72(R13), CX
	TESTQ	CX, CX
	JEQ	exit
	MOVQ	16(CX), DX
	MOVQ	AX, (DX)
	MOVQ	16(R12), DI
	MOVQ	0(CX), SI
	MOVQ	8(CX), DX
	MOVQ	$1, AX // write
	SYSCALL

exit:
	MOVQ	$1, DI
	MOVQ	$231, AX // exit_group
	SYSCALL
	INT	$3

done:
	XORL	DI, DI
	MOVQ	$231, AX
	SYSCALL
	INT	$3
