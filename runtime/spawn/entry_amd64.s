#include "textflag.h"

// entry is where podwright-init begins (-E of the linker): with the image in its plan file, or as any Go program.
// It keeps the stack, from which Go's runtime reads its arguments. The numbers are those of image.go; a test compares.
TEXT ·entry(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ	$3, DI // launch.PlanFd
	XORL	SI, SI
	MOVQ	$2, DX // SEEK_END
	MOVQ	$8, AX // lseek
	SYSCALL
	CMPQ	AX, $56 // of the header; also less: an errno
	JLT	ordinary
	MOVQ	AX, SI
	MOVQ	$0x20000000, DI
	MOVQ	$3, DX         // PROT_READ|PROT_WRITE
	MOVQ	$0x100002, R10 // MAP_PRIVATE|MAP_FIXED_NOREPLACE
	MOVQ	$3, R8
	XORL	R9, R9
	MOVQ	$9, AX // mmap
	SYSCALL
	CMPQ	AX, $0x20000000
	JNE	ordinary
	MOVQ	$0x01454d4947414d49, CX
	CMPQ	CX, (AX)
	JNE	ordinary
	LEAQ	16(AX), R12
	JMP	·walkCalls(SB)

ordinary:
	XORL	DX, DX
	JMP	_rt0_amd64_linux(SB)
