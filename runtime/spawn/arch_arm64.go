package spawn

// BeginsWithImage tells whether podwright-init is built to look for an image first.
const BeginsWithImage = false

const (
	sysWaitid   = 95
	sysSetns    = 268
	sysExecveat = 281
)
