package telemetry

import (
	"context"
	"os"
	"regexp"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
)

// docs/observability.md has a row for every metric, and none for what isn't there.
func TestDocumentationListsEveryMetric(t *testing.T) {
	answers := make(chan struct{})
	close(answers)
	watch, url := measured(t, fakeKeeper{answers})
	// What has no values yet is not collected.
	watch.Operation(t.Context(), &podsandbox.Operation{Kind: "run sandbox"}, nil)
	watch.metrics.steps.WithLabelValues("run sandbox", "record").Observe(1)
	watch.Pulled(t.Context(), image.Pulled{Took: time.Second, Err: context.Canceled})
	watch.begin("/runtime.v1.RuntimeService/Version").end(t.Context(), nil, nil)
	scrape(t, url)
	watch.metrics.endpoint.collector.running.Wait()
	families, err := watch.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "podwright_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		sort.Strings(labels)
		have = append(have, f.GetName()+" "+strings.ToLower(f.GetType().String())+" "+strings.Join(labels, ","))
	}
	raw, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(podwright_[a-z_]+)` \\| (\\w+) \\|([^|]*)\\|").FindAllStringSubmatch(string(raw), -1) {
		labels := strings.FieldsFunc(row[3], func(r rune) bool { return r == '`' || r == ',' || r == ' ' })
		sort.Strings(labels)
		documented = append(documented, row[1]+" "+row[2]+" "+strings.Join(labels, ","))
	}
	for _, kind := range podsandbox.OperationKinds() {
		if !strings.Contains(string(raw), "`"+kind+"`") {
			t.Errorf("docs/observability.md does not name the operation %q", kind)
		}
	}
	sort.Strings(have)
	sort.Strings(documented)
	if got, want := strings.Join(documented, "\n"), strings.Join(have, "\n"); got != want {
		t.Errorf("docs/observability.md lists\n%s\nand there are\n%s", got, want)
	}
}
