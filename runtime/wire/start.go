package wire

// The descriptors that an anchor and a keeper find when they are started. Descriptor 0 is /dev/null, open for
// reading and writing: it is also what a launch without stdin gets; 1 and 2 are the log.
const (
	PeerFd     = 3 // keeper: the socket to the anchor; anchor: nothing
	ListenerFd = 4 // the listening socket, made by the daemon: its path lies in a mount namespace they left
	RunDirFd   = 5 // the run directory, with exits/ and children/
	BinaryFd   = 6 // memfd of the keeper's program
	InitFd     = 7 // memfd of init
	ProcsFd    = 8 // the first of the cgroup.procs files that a new anchor joins
)

// Arguments of the one program. The anchor gets the number of cgroup.procs files as another.
const (
	ArgAnchor = "anchor"
	ArgKeeper = "keeper"
	ArgCheck  = "check" // reads all that a keeper would take over, and ends
	// ArgResume and the number of a descriptor follow where the process was the other role, or this one in an
	// older program, a moment ago, and left its state in that descriptor's file.
	ArgResume = "resume"
)

// Names below the run directory.
const (
	SocketName  = "keeper.sock"
	ExitsDir    = "exits"
	ChildrenDir = "children"
)
