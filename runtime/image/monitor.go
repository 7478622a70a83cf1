package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Progress is one look at a running pull.
type Progress struct {
	Reference string
	// Phase is "resolving", "downloading", "unpacking" or "importing".
	Phase string
	// BytesDone of BytesTotal of packed layers are here; layers that were
	// here before count as done.
	BytesDone, BytesTotal   int64
	LayersDone, LayersTotal int
}

// Anything that is not a layer is read into memory by somebody: manifests,
// tokens, error pages.
const (
	maxDocumentBytes = 8 << 20
	progressInterval = 200 * time.Millisecond
)

// monitor watches one pull: it reports progress and notices when the registry
// has stopped sending (B43).
type monitor struct {
	reference string
	started   time.Time
	phase     atomic.Pointer[Phase]
	host      atomic.Pointer[string] // of the last request
	received  atomic.Int64           // bytes of all answers
	waiting   atomic.Int64           // requests whose answer is not here yet
	lastMove  atomic.Int64           // unix nanoseconds

	bytesDone, bytesTotal   atomic.Int64
	layersDone, layersTotal atomic.Int64

	// mu guards watchers and phases.
	mu       sync.Mutex
	watchers map[int]func(Progress)
	next     int
	phases   []Phase
}

func newMonitor(reference string) *monitor {
	m := &monitor{reference: reference, started: time.Now(), watchers: map[int]func(Progress){}}
	m.enter("resolving")
	return m
}

// enter begins a phase. Layers are unpacked while others are fetched, so that a phase may come again.
func (m *monitor) enter(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.move()
	if now := m.phase.Load(); now != nil && now.Name == name {
		return
	}
	phase := Phase{Name: name, Began: time.Now()}
	m.phase.Store(&phase)
	if len(m.phases) < maxPhases {
		m.phases = append(m.phases, phase)
	}
}

func (m *monitor) move() { m.lastMove.Store(time.Now().UnixNano()) }

// watch calls f with the pull's progress until the returned function is
// called; after that f is not running and will not be called again.
func (m *monitor) watch(f func(Progress)) (stop func()) {
	if f == nil {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := m.next
	m.next++
	m.watchers[key] = f
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, key)
	}
}

// run reports and watches until ctx ends; without progress for timeout it
// cancels the pull. Time counts only while a request is open: unpacking a
// large layer is not the registry's fault.
func (m *monitor) run(ctx context.Context, timeout time.Duration, cancel context.CancelCauseFunc) {
	interval := progressInterval
	if timeout > 0 {
		interval = max(min(interval, timeout/4), time.Millisecond)
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		m.report()
		if m.waiting.Load() == 0 {
			m.move()
			continue
		}
		if timeout > 0 && time.Since(time.Unix(0, m.lastMove.Load())) > timeout {
			cancel(fmt.Errorf("%w for %s: the registry sends nothing", ErrNoProgress, timeout))
			return
		}
	}
}

func (m *monitor) report() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.watchers) == 0 {
		return
	}
	p := m.progress()
	for _, f := range m.watchers {
		f(p)
	}
}

func (m *monitor) progress() Progress {
	return Progress{
		Reference: m.reference, Phase: m.phase.Load().Name,
		BytesDone: m.bytesDone.Load(), BytesTotal: m.bytesTotal.Load(),
		LayersDone: int(m.layersDone.Load()), LayersTotal: int(m.layersTotal.Load()),
	}
}

// bodyLimit is the context key under which a layer's fetch says how much it
// expects; every other answer is bounded by maxDocumentBytes.
type bodyLimit struct{}

// meter is the transport of all requests of one pull.
type meter struct {
	next    http.RoundTripper
	monitor *monitor
}

func (t *meter) RoundTrip(req *http.Request) (*http.Response, error) {
	t.monitor.host.Store(&req.URL.Host)
	t.monitor.waiting.Add(1)
	t.monitor.move()
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		t.monitor.waiting.Add(-1)
		return nil, err
	}
	t.monitor.move()
	if req.Method == http.MethodHead || resp.Body == http.NoBody {
		t.monitor.waiting.Add(-1)
		return resp, nil
	}
	limit, isLayer := req.Context().Value(bodyLimit{}).(int64)
	if !isLayer {
		limit = maxDocumentBytes
	}
	resp.Body = &meteredBody{ReadCloser: resp.Body, monitor: t.monitor, left: limit}
	return resp, nil
}

// CloseIdleConnections is what http.Client.CloseIdleConnections looks for.
func (t *meter) CloseIdleConnections() {
	if closer, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}

type meteredBody struct {
	io.ReadCloser
	monitor *monitor
	left    int64
	once    sync.Once
}

func (b *meteredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.monitor.received.Add(int64(n))
		b.monitor.move()
	}
	b.left -= int64(n)
	if b.left < 0 {
		return 0, fmt.Errorf("%w: the registry sends more than announced", ErrInvalidImage)
	}
	if err != nil {
		b.once.Do(func() { b.monitor.waiting.Add(-1) })
	}
	return n, err
}

func (b *meteredBody) Close() error {
	b.once.Do(func() { b.monitor.waiting.Add(-1) })
	return b.ReadCloser.Close()
}
