#include "textflag.h"

// Offsets of rawProgram and rawCall are those of walk.go; spawn_test.go holds them together.
// Between system calls the kernel keeps every register but R0.

// func cloneAndWalk(args *cloneArgs, size uintptr, p *rawProgram) (r uintptr)
TEXT ·cloneAndWalk(SB), NOSPLIT|NOFRAME, $0-32
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	p+16(FP), R19
	MOVD	$435, R8 // clone3
	SVC
	CBZ	R0, child
	MOVD	R0, r+24(FP)
	RET

child:
	B	walkCalls<>(SB)

// func walk(p *rawProgram)
TEXT ·walk(SB), NOSPLIT|NOFRAME, $0-8
	MOVD	p+0(FP), R19
	B	walkCalls<>(SB)

// walkCalls makes the calls of the program at R19 and never returns. It touches no stack: after
// CLONE_VM that stack is the suspended parent's.
TEXT walkCalls<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVD	0(R19), R20 // the call
	MOVD	8(R19), R21 // calls left
	MOVD	$2, R22     // the errno kept from tolerated failures: ENOENT before there is one

next:
	CBZ	R21, done
	MOVD	0(R20), R8
	MOVD	8(R20), R0
	MOVD	16(R20), R1
	MOVD	24(R20), R2
	MOVD	32(R20), R3
	MOVD	40(R20), R4
	MOVD	48(R20), R5
	CMN	$3, R8
	BCS	pseudo
	SVC

result:
	CMN	$4095, R0
	BCS	failed
	MOVD	56(R20), R9
	CBZ	R9, stored
	MOVD	R0, (R9)

stored:
	CBZ	R0, advance
	MOVD	80(R20), R9 // of a fork: how many calls are the child's only

pass:
	SUB	R9, R21, R21
	MOVD	$96, R10
	MUL	R10, R9, R9
	ADD	R9, R20, R20

advance:
	ADD	$96, R20, R20
	SUB	$1, R21, R21
	B	next

failed:
	NEG	R0, R0
	CMP	$64, R0
	BCS	fatal
	MOVD	64(R20), R9
	LSR	R0, R9, R9
	TBZ	$0, R9, fatal
	MOVD	88(R20), R9
	MOVD	0(R20), R10
	CMP	$221, R10 // execve
	BNE	pass
	CMP	$13, R22 // EACCES outweighs what follows, as in execvp(3)
	BEQ	pass
	MOVD	R0, R22
	B	pass

pseudo:
	CMN	$1, R8
	BEQ	giveup
	CMN	$3, R8
	BNE	result // the value is in R0
	MOVD	(R0), R9
	AND	R1, R9, R9
	MOVD	ZR, R0
	CMP	R2, R9
	BEQ	result
	NEG	R3, R0
	B	result

giveup:
	MOVD	R22, R0

fatal:
	MOVD	R0, 32(R19)
	MOVD	8(R19), R9
	SUB	R21, R9, R9
	MOVD	R9, 24(R19)
	MOVD	72(R20), R9
	CBZ	R9, exit
	MOVD	16(R9), R10
	MOVD	R0, (R10)
	MOVD	16(R19), R0
	MOVD	0(R9), R1
	MOVD	8(R9), R2
	MOVD	$64, R8 // write
	SVC

exit:
	MOVD	$1, R0
	MOVD	$94, R8 // exit_group
	SVC
	BRK

done:
	MOVD	ZR, R0
	MOVD	$94, R8
	SVC
	BRK
