package apparmor

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// hashFiles are where the kernel shows a digest of a profile, by its version and configuration.
var hashFiles = []string{"sha256", "sha1"}

// isLoaded says whether the kernel has the profile that was made of text. It compares what was written down at the
// loading, so it holds only for a profile that nobody replaced since.
func (p *Policy) isLoaded(text string) bool {
	mode, err := p.Loaded(DefaultName)
	if err != nil || !enforces(mode) {
		return false
	}
	seal := p.seal(text)
	raw, err := os.ReadFile(p.cfg.StateFile)
	return err == nil && seal != "" && string(raw) == seal
}

// remember writes down what was loaded. Without it the next start loads the same again, which is harmless.
func (p *Policy) remember(text string) error {
	seal := p.seal(text)
	if seal == "" {
		return nil
	}
	temporary := p.cfg.StateFile + ".new"
	err := os.WriteFile(temporary, []byte(seal), 0o600)
	if err == nil {
		err = os.Rename(temporary, p.cfg.StateFile)
	}
	if err != nil {
		return fmt.Errorf("write down that it is loaded: %w", err)
	}
	return nil
}

// seal joins the digests of text and of what the kernel has; "" where the kernel shows none.
func (p *Policy) seal(text string) string {
	digest := sha256.Sum256([]byte(text))
	// Directories are named by profile and a running number.
	dirs, err := filepath.Glob(filepath.Join(p.kernel, "policy/profiles", DefaultName+".*"))
	if err != nil {
		return ""
	}
	for _, dir := range dirs {
		if name, err := os.ReadFile(filepath.Join(dir, "name")); err != nil || strings.TrimSpace(string(name)) != DefaultName {
			continue
		}
		for _, file := range hashFiles {
			if hash, err := os.ReadFile(filepath.Join(dir, file)); err == nil && len(hash) > 0 {
				return hex.EncodeToString(digest[:]) + " " + strings.TrimSpace(string(hash)) + "\n"
			}
		}
	}
	return ""
}
