package cni

import "testing"

// Whatever a pod's annotation says: no rate, or one within the limits that Kubernetes has.
func FuzzRate(f *testing.F) {
	for _, text := range []string{"10M", "1.5Gi", "1e3", ".5k", "1e-2", "+7k", "9999999999999999999E", "0", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		bits, err := rate(map[string]string{ingressAnnotation: text}, ingressAnnotation)
		if err == nil && (bits < 1_000 || bits > 1_000_000_000_000_000) {
			t.Fatalf("%q: got %d bits per second", text, bits)
		}
	})
}
