package initproc

const (
	sysSetns    = 268
	sysSeccomp  = 277
	sysStatx    = 291
	sysExecveat = 281

	elfMachine = 183        // e_machine
	auditArch  = 0xc00000b7 // AUDIT_ARCH_*
)
