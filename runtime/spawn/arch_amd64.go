package spawn

const (
	sysWaitid   = 247
	sysSetns    = 308
	sysExecveat = 322
)
