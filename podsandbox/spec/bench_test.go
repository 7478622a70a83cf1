package spec

import "testing"

func BenchmarkContainerAndPlan(b *testing.B) {
	in := goodInput()
	for b.Loop() {
		s, err := Container(in)
		if err != nil {
			b.Fatal(err)
		}
		l, err := Compile(s, CompileInput{ID: in.ID, Node: in.Node})
		if err != nil {
			b.Fatal(err)
		}
		l.Plan.Encode()
	}
}

func BenchmarkExec(b *testing.B) {
	in := goodInput()
	s, err := Container(in)
	if err != nil {
		b.Fatal(err)
	}
	kept := ExecSpec(s)
	for b.Loop() {
		l, err := Exec(ExecInput{ID: in.ID, Spec: kept, Args: []string{"true"}, Node: in.Node})
		if err != nil {
			b.Fatal(err)
		}
		l.Plan.Encode()
	}
}
