package spawn

const (
	sysWaitid   = 247
	sysExecveat = 322
)
