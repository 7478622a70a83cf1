package telemetry

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
	"github.com/podwright/podwright/runtime/wire"
)

// Sources are what is looked at when somebody collects; all of them answer from memory but Keeper.List.
type Sources struct {
	Operations func() []*podsandbox.Operation
	Objects    func() podsandbox.Counts
	Images     Images
	Keeper     Keeper
}

// Images is the image store.
type Images interface {
	Count() int
	FsInfo(context.Context) (image.FsInfo, error)
	Pulls() []image.Pull
}

// Keeper is the keeper's client.
type Keeper interface {
	Connected() bool
	Reconnects() uint64
	List(context.Context) ([]wire.Child, error)
}

// The keeper's own figures are asked for beside a collection, for the next one: they are one collection old.
const (
	keeperFresh   = time.Second // between two questions
	keeperTimeout = 5 * time.Second
)

// collector gives the gauges.
type collector struct {
	sources Sources
	descs   map[string]*prometheus.Desc

	children atomic.Pointer[[]wire.Child] // as the keeper last said; nil before
	mu       sync.Mutex                   // mu guards asking, asked, closed.
	asking   bool
	asked    time.Time
	stop     context.CancelFunc
	stopped  context.Context
	running  sync.WaitGroup
}

// gauges are all that the collector gives.
var gauges = []struct {
	name, help string
	labels     []string
}{
	{"podwright_operations_in_flight", "Operations under way.", []string{"operation"}},
	{"podwright_operation_oldest_age_seconds", "Age of the oldest operation under way, 0 without one.", []string{"operation"}},
	{"podwright_sandboxes", "Sandboxes there are.", []string{"state"}},
	{"podwright_containers", "Containers there are.", []string{"state"}},
	{"podwright_container_isolation", "Running containers by what the last isolation report said: all that was asked holds, less does, or it is not known.", []string{"isolation"}},
	{"podwright_images", "Images that can be used.", nil},
	{"podwright_image_filesystem_used_bytes", "Disk space that images take.", nil},
	{"podwright_image_filesystem_used_inodes", "Inodes that images take.", nil},
	{"podwright_image_pulls_in_flight", "Image pulls and imports under way.", nil},
	{"podwright_image_pull_longest_idle_seconds", "For how long the most silent registry has sent nothing that it owes, 0 without one.", nil},
	{"podwright_keeper_connected", "1 while the keeper answers.", nil},
	{"podwright_keeper_reconnects_total", "How often the connection to the keeper was made anew.", nil},
	{"podwright_keeper_children", "Processes that the keeper has, at the collection before.", []string{"kind"}},
	{"podwright_keeper_lost_log_lines", "Log lines that could not be written, of the processes that the keeper has, at the collection before.", nil},
}

func newCollector(sources Sources) *collector {
	c := &collector{sources: sources, descs: map[string]*prometheus.Desc{}}
	c.stopped, c.stop = context.WithCancel(context.Background())
	for _, g := range gauges {
		c.descs[g.name] = prometheus.NewDesc(g.name, g.help, g.labels, nil)
	}
	return c
}

// Describe names everything.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, g := range gauges {
		to <- c.descs[g.name]
	}
}

// Collect reads memory.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(name string, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(c.descs[name], prometheus.GaugeValue, value, labels...)
	}
	c.collectOperations(gauge)
	objects := c.sources.Objects()
	for state, count := range objects.Sandboxes {
		gauge("podwright_sandboxes", float64(count), state)
	}
	for state, count := range objects.Containers {
		gauge("podwright_containers", float64(count), state)
	}
	for isolation, count := range objects.Isolation {
		gauge("podwright_container_isolation", float64(count), isolation)
	}
	c.collectImages(gauge)
	c.collectKeeper(gauge)
	to <- prometheus.MustNewConstMetric(c.descs["podwright_keeper_reconnects_total"], prometheus.CounterValue, float64(c.sources.Keeper.Reconnects()))
}

func (c *collector) collectOperations(gauge func(string, float64, ...string)) {
	inFlight, oldest := map[string]int{}, map[string]time.Duration{}
	for _, kind := range podsandbox.OperationKinds() {
		inFlight[kind] = 0
	}
	for _, op := range c.sources.Operations() {
		inFlight[op.Kind]++
		oldest[op.Kind] = max(oldest[op.Kind], time.Since(op.Started))
	}
	for kind, count := range inFlight {
		gauge("podwright_operations_in_flight", float64(count), kind)
		gauge("podwright_operation_oldest_age_seconds", oldest[kind].Seconds(), kind)
	}
}

func (c *collector) collectImages(gauge func(string, float64, ...string)) {
	gauge("podwright_images", float64(c.sources.Images.Count()))
	if info, err := c.sources.Images.FsInfo(c.stopped); err == nil {
		gauge("podwright_image_filesystem_used_bytes", float64(info.UsedBytes))
		gauge("podwright_image_filesystem_used_inodes", float64(info.InodesUsed))
	}
	pulls := c.sources.Images.Pulls()
	var idle time.Duration
	for _, p := range pulls {
		idle = max(idle, p.Idle)
	}
	gauge("podwright_image_pulls_in_flight", float64(len(pulls)))
	gauge("podwright_image_pull_longest_idle_seconds", idle.Seconds())
}

func (c *collector) collectKeeper(gauge func(string, float64, ...string)) {
	connected := 0.0
	if c.sources.Keeper.Connected() {
		connected = 1
	}
	gauge("podwright_keeper_connected", connected)
	children := map[string]int{string(wire.KindContainer): 0, string(wire.KindExec): 0, string(wire.KindReaper): 0}
	if known := c.children.Load(); known != nil {
		var lost uint64
		for _, child := range *known {
			children[string(child.Kind)]++
			lost += child.LostLines
		}
		for _, kind := range slices.Sorted(maps.Keys(children)) {
			gauge("podwright_keeper_children", float64(children[kind]), kind)
		}
		gauge("podwright_keeper_lost_log_lines", float64(lost))
	}
	c.askKeeper()
}

// askKeeper asks for the next collection's figures, one question at a time: a keeper that does not answer holds up no collection.
func (c *collector) askKeeper() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asking || time.Since(c.asked) < keeperFresh || c.stopped.Err() != nil {
		return
	}
	c.asking, c.asked = true, time.Now()
	c.running.Add(1)
	// Owner: collector; ends by keeperTimeout or close, which waits for it.
	go func() {
		defer c.running.Done()
		ctx, cancel := context.WithTimeout(c.stopped, keeperTimeout)
		defer cancel()
		if children, err := c.sources.Keeper.List(ctx); err == nil {
			c.children.Store(&children)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.asking = false
	}()
}

func (c *collector) close() {
	c.mu.Lock()
	c.stop()
	c.mu.Unlock()
	c.running.Wait()
}
