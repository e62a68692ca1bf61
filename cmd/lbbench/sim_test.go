package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/cmd/lbbench/sim"
)

func TestSim(t *testing.T) {
	args := []string{"sim", "--hosts", "2", "--rate", "20", "--seed", "7", "--seeds", "2", "--contenders", "lbagent,oracle"}
	var out, errs bytes.Buffer
	if code := run(append(args, "--json", "weights", "failing"), &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	var all []sim.Result
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range all {
		got = append(got, r.Scenario+" "+r.Contender+" "+string(rune('0'+r.Seed)))
		if r.Hosts != 2 || r.Rate != 20 || r.Calls == 0 {
			t.Errorf("%+v", r)
		}
	}
	want := "weights lbagent 7,weights oracle 7,weights lbagent 8,weights oracle 8,failing lbagent 7,failing oracle 7,failing lbagent 8,failing oracle 8"
	if strings.Join(got, ",") != want {
		t.Errorf("ran %v", got)
	}
	if n := strings.Count(errs.String(), "\n"); n != 8 {
		t.Errorf("%d lines of progress:\n%s", n, errs.String())
	}
	out.Reset()
	if code := run(append(args, "weights"), &out, &errs); code != 0 || !strings.Contains(out.String(), "two backends, one of twice the weight") || strings.Count(out.String(), "\n") != 8 {
		t.Errorf("exit %d:\n%s", code, out.String())
	}
}

func TestSimUsage(t *testing.T) {
	for _, args := range [][]string{
		{"--hosts", "-1"}, {"--seeds", "0"}, {"--dist", "normal"}, {"--contenders", "nginx"}, {"--load", "1"}, {"--mean", "0s"}, {"--timeout", "1us"},
		{"--set", "policy: best"}, {"bliss"}, {"--bliss"},
	} {
		var out, errs bytes.Buffer
		if code := run(append([]string{"sim"}, args...), &out, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("%v: exit %d, %q", args, code, errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := run([]string{"sim", "--help"}, &out, &errs); code != 0 || !strings.Contains(out.String(), "flapping") {
		t.Errorf("exit %d: %s%s", code, out.String(), errs.String())
	}
}
