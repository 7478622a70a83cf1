package initproc

const (
	sysSetns    = 308
	sysSeccomp  = 317
	sysStatx    = 332
	sysExecveat = 322

	elfMachine = 62         // e_machine
	auditArch  = 0xc000003e // AUDIT_ARCH_*
)
