package spawn

// entry is not called: it is where the process begins.
func entry()
