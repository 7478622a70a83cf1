package spawn

// BeginsWithImage tells whether podwright-init is built to look for an image first (entry_amd64.s).
const BeginsWithImage = true

const (
	sysWaitid   = 247
	sysSetns    = 308
	sysExecveat = 322
)
