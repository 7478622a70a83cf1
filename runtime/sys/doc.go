// Package sys makes system calls that golang.org/x/sys lacks or makes awkward:
// detached mounts, openat2 with its retries, pidfds, one-write kernel files, the priority of a
// thread. It owns no state and takes no decision; it may not know containers, and what it
// returns is an *os.File that the caller closes. Everything is O_CLOEXEC.
// Source: the section 2 man pages that each function names.
package sys
