package spawn

const (
	sysWaitid   = 95
	sysExecveat = 281
)
