package streaming

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// keyPair is a certificate and its key in files, which whoever renews them replaces.
type keyPair struct {
	certFile, keyFile string

	mu      sync.Mutex // mu guards what follows.
	pair    *tls.Certificate
	changed [2]time.Time // of the files that pair was read from
}

func newKeyPair(certFile, keyFile string) (*keyPair, error) {
	k := &keyPair{certFile: certFile, keyFile: keyFile}
	changed, err := k.stamps()
	if err == nil {
		err = k.loadLocked(changed)
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// certificate looks at each handshake whether the files changed. What can't be read leaves the old pair in use: one of
// the two is replaced first.
func (k *keyPair) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed, err := k.stamps()
	if err == nil && changed != k.changed {
		err = k.loadLocked(changed)
	}
	if err != nil {
		klog.Background().Error(err, "The certificate for streams was not read again; the old one stays in use")
	}
	return k.pair, nil
}

func (k *keyPair) stamps() (changed [2]time.Time, err error) {
	for i, path := range []string{k.certFile, k.keyFile} {
		info, err := os.Stat(path)
		if err != nil {
			return changed, fmt.Errorf("look at certificate: %w", err)
		}
		changed[i] = info.ModTime()
	}
	return changed, nil
}

func (k *keyPair) loadLocked(changed [2]time.Time) error {
	pair, err := tls.LoadX509KeyPair(k.certFile, k.keyFile)
	if err != nil {
		return fmt.Errorf("load certificate %s with key %s: %w", k.certFile, k.keyFile, err)
	}
	k.pair, k.changed = &pair, changed
	return nil
}
