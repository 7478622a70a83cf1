package keeperd

// The keeper's verbs by noun. All work on the one state of the one loop, so each is the keeper itself under another
// name; a value of these types holds nothing of its own.
type (
	// children are the processes in the table: watched, drained, announced, reaped, forgotten.
	children struct{ *keeper }
	// launches are processes on their way into it.
	launches struct{ *keeper }
	// clients are the connections and what they ask for.
	clients struct{ *keeper }
	// takeover is the re-adoption of what an earlier keeper left.
	takeover struct{ *keeper }
	// upgrades replace the running program: the keeper's by a newer one, a lost anchor's by the keeper's.
	upgrades struct{ *keeper }
)

func (k *keeper) children() children { return children{k} }
func (k *keeper) launches() launches { return launches{k} }
func (k *keeper) clients() clients   { return clients{k} }
func (k *keeper) takeover() takeover { return takeover{k} }
func (k *keeper) upgrades() upgrades { return upgrades{k} }
