package record

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
)

// version is of the records' form. A record of another one is reported as bad, not guessed at.
const version = 1

// maxRecordBytes bounds what is read back: a configuration is at most a gRPC message of 16 MiB, in base64.
const maxRecordBytes = 32 << 20

type storedSandbox struct {
	Version int `json:"version"`
	*Sandbox
}

type storedContainer struct {
	Version int `json:"version"`
	*Container
}

func encodeSandbox(r *Sandbox) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	return json.Marshal(storedSandbox{version, r})
}

func encodeContainer(r *Container) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	return json.Marshal(storedContainer{version, r})
}

func decodeSandbox(b []byte) (Sandbox, error) {
	stored := storedSandbox{Sandbox: &Sandbox{}}
	if err := decode(b, &stored, &stored.Version); err != nil {
		return Sandbox{}, err
	}
	return *stored.Sandbox, stored.check()
}

func decodeContainer(b []byte) (Container, error) {
	stored := storedContainer{Container: &Container{}}
	if err := decode(b, &stored, &stored.Version); err != nil {
		return Container{}, err
	}
	return *stored.Container, stored.check()
}

func decode(b []byte, into any, got *int) error {
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if *got != version {
		return fmt.Errorf("version %d, want %d: %w", *got, version, ErrInvalid)
	}
	return nil
}

// check refuses a record that recovery could not act on.
func (r *Sandbox) check() error {
	if r == nil || !ValidID(r.ID) {
		return fmt.Errorf("no id: %w", ErrInvalid)
	}
	if !slices.Contains([]SandboxPhase{SandboxCreating, SandboxReady, SandboxNotReady}, r.Phase) {
		return fmt.Errorf("phase %q: %w", r.Phase, ErrInvalid)
	}
	return nil
}

func (r *Container) check() error {
	if r == nil || !ValidID(r.ID) || !ValidID(r.SandboxID) {
		return fmt.Errorf("no id or no sandbox: %w", ErrInvalid)
	}
	if !slices.Contains([]ContainerPhase{ContainerCreating, ContainerCreated, ContainerRunning, ContainerExited}, r.Phase) {
		return fmt.Errorf("phase %q: %w", r.Phase, ErrInvalid)
	}
	if r.PID < 0 {
		return fmt.Errorf("pid %d: %w", r.PID, ErrInvalid) // negative ones mean groups to kill(2)
	}
	return nil
}

// readBounded reads a regular file of our own tree.
func readBounded(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err == nil && len(b) > maxRecordBytes {
		err = fmt.Errorf("more than %d bytes: %w", maxRecordBytes, ErrInvalid)
	}
	return b, err
}
