package spawn

const (
	sysWaitid   = 95
	sysSetns    = 268
	sysExecveat = 281
)
