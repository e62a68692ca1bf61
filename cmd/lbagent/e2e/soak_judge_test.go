package e2e

import (
	wire "encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// seen is how long after a backend's end the agent may still take it for alive: the news is on its way. What the machine is late by is added.
	seen = 500 * time.Millisecond
	// found is how long a hung backend may take calls that fail (2.11: 1 s without a byte, 1 s for the PING), and then the time of a call.
	found = 5 * time.Second
)

// judge says which failures of a soak the rules allow. It knows what happened to whom, and which backends a call reached.
type judge struct {
	incidents []incident
	names     map[string]string   // by address
	touched   map[uint64][]string // by call, from the backends' notes
	late      []lateness          // of this machine
}

// readNotes returns which calls reached which backends, and what these complained of.
func readNotes(t *testing.T, backends []*soakBackend) (touched map[uint64][]string, complaints []string) {
	t.Helper()
	touched = map[uint64][]string{}
	for _, b := range backends {
		notes, err := os.ReadFile(b.notes)
		if err != nil {
			t.Fatal(err)
		}
		for ; len(notes) >= noteLen; notes = notes[noteLen:] {
			id := wire.BigEndian.Uint64(notes[1:])
			switch notes[0] {
			case noteBegan:
				touched[id] = append(touched[id], b.name)
			case noteCorrupt:
				complaints = append(complaints, fmt.Sprintf("call %d: %s got other bytes than were sent", id, b.name))
			case noteShort:
				complaints = append(complaints, fmt.Sprintf("call %d: %s got too few bytes, and then a good end", id, b.name))
			}
		}
	}
	return touched, complaints
}

// suspects are the backends that a call may have failed on.
func (j *judge) suspects(c *soakCall) []string {
	set := map[string]bool{}
	if c.backend != "" {
		set[c.backend] = true
	}
	for _, name := range j.touched[c.id] {
		set[name] = true
	}
	for addr, name := range j.names {
		if strings.Contains(c.err.Error(), addr) {
			set[name] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// allowed is the incident because of which the rules allow that c failed; nil if there is none.
func (j *judge) allowed(c *soakCall) *incident {
	text := c.err.Error()
	switch {
	case strings.Contains(text, "CORRUPT"):
		return nil // nothing allows this
	case strings.Contains(text, "SHORT") && c.service != "tcp":
		return nil // nor a part that passes for the whole; a TCP connection's end is no more than that
	}
	if st, ok := status.FromError(c.err); ok && c.service == "grpc" {
		switch st.Code() {
		case codes.Unavailable, codes.Internal, codes.Canceled, codes.DeadlineExceeded:
		default:
			return nil
		}
	}
	suspects := j.suspects(c)
	for _, i := range j.incidents {
		// A call that a hung process never read isn't in its notes; nor is a TCP connection that the kernel had taken for a process that ended.
		unnoted := len(suspects) == 0 && (i.what == hung || i.what != removed && c.service == "tcp")
		if i.service == c.service && (slices.Contains(suspects, i.backend) || unnoted) && j.excuses(&i, c) {
			return &i
		}
	}
	return nil
}

// excuses reports whether i explains the failure of c, which was or may have been on its backend.
func (j *judge) excuses(i *incident, c *soakCall) bool {
	during := func(from, to time.Time) bool { return !c.begun.After(to) && !c.got.Before(from) }
	seen, found := seen+slack(j.late, i.to), found+slack(j.late, i.from)
	switch i.what {
	case killed:
		return during(i.from, i.to.Add(seen))
	case hung: // HTTP/1.1 and TCP have no PING: their calls wait, and go on with the backend
		return (c.service == "grpc" || strings.HasPrefix(c.shape, "h2")) && during(i.from, i.to.Add(seen)) && c.begun.Before(i.from.Add(found))
	case ended:
		// HTTP/2 says goodbye, so that nothing need fail. Without one a request may meet the end: it's sent again only if that is safe (4.1). A TCP
		// connection that the kernel had taken and the process had not is reset.
		plain := c.service == "tcp" || strings.HasPrefix(c.shape, "http1") && !c.idempotent
		return plain && during(i.from, i.to.Add(seen)) || during(i.from.Add(soakGrace), i.to)
	case removed: // 4.7
		return c.begun.Before(i.from.Add(2*seen)) && during(i.from.Add(soakDrain), i.from.Add(soakDrain+found)) && i.to.After(i.from.Add(soakDrain))
	}
	return false
}

// undecided reports whether c may have failed for no other reason than that the machine stood still, or nearly so. What came of it has to be right all the same.
func (j *judge) undecided(c *soakCall) bool {
	text := c.err.Error()
	return !strings.Contains(text, "CORRUPT") && !strings.Contains(text, "SHORT") && mostLate(j.late, c.begun.Add(-lateBefore), c.got) > lateJudged
}

// story is all that is known of a failed call.
func (j *judge) story(c *soakCall) string {
	var b strings.Builder
	clock := func(t time.Time) string { return t.Format("15:04:05.000") }
	fmt.Fprintf(&b, "call %d (%s) %s - %s: %v; reached %v", c.id, c.shape, clock(c.begun), clock(c.got), c.err, j.suspects(c))
	for _, i := range j.incidents {
		if i.service == c.service && i.from.Before(c.got.Add(time.Second)) && i.back.After(c.begun.Add(-3*time.Second)) {
			fmt.Fprintf(&b, "\n    %v", i)
		}
	}
	return b.String()
}

// The judge itself: what it lets pass, and what not.
func TestSoakJudge(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	j := &judge{names: map[string]string{"10.0.0.1:80": "grpc0", "10.0.0.2:80": "grpc1"}, touched: map[uint64][]string{1: {"grpc0"}, 2: {"grpc1"}, 4: {"web0"}, 5: {"tcp0"}, 7: {"tcp1"}},
		incidents: []incident{
			{killed, "grpc", "grpc0", at(1000), at(1010), at(2000)},
			{hung, "grpc", "grpc1", at(20000), at(29000), at(29000)},
			{removed, "grpc", "grpc0", at(40000), at(45000), at(45000)},
			{removed, "grpc", "grpc0", at(50000), at(50500), at(50500)},
			{ended, "grpc", "grpc0", at(60000), at(60500), at(61000)},
			{ended, "web", "web0", at(60000), at(60500), at(61000)},
			{hung, "web", "web0", at(70000), at(75000), at(75000)},
			{killed, "tcp", "tcp0", at(1000), at(1010), at(2000)},
			{killed, "grpc", "grpc1", at(83000), at(83010), at(90000)},
		},
		late: []lateness{{at(84000), 1000 * time.Millisecond}}}
	unavailable := status.Error(codes.Unavailable, "x")
	for _, tt := range []struct {
		name      string
		c         soakCall
		from, to  int
		permitted bool
	}{
		{"in flight on the killed", soakCall{id: 1, service: "grpc", err: unavailable}, 900, 1020, true},
		{"in flight on another", soakCall{id: 2, service: "grpc", err: unavailable}, 900, 1020, false},
		{"in flight on nobody knows which", soakCall{id: 3, service: "grpc", err: unavailable}, 900, 1020, false},
		{"the agent names the killed", soakCall{id: 3, service: "grpc", err: status.Error(codes.Unavailable, "lbagent: grpc: 10.0.0.1:80 connection lost")}, 900, 1020, true},
		{"its answer named the killed", soakCall{id: 3, service: "grpc", backend: "grpc0", err: unavailable}, 900, 1020, true},
		{"begun after the kill", soakCall{id: 1, service: "grpc", err: unavailable}, 1600, 1700, false},
		{"over before the kill", soakCall{id: 1, service: "grpc", err: unavailable}, 900, 990, false},
		{"other bytes", soakCall{id: 1, service: "grpc", err: corruptError(7)}, 900, 1020, false},
		{"half of an answer as a whole one", soakCall{id: 1, service: "grpc", err: complete(&checker{}, 7)}, 900, 1020, false},
		{"a code that the agent has no reason for", soakCall{id: 1, service: "grpc", err: status.Error(codes.DataLoss, "x")}, 900, 1020, false},
		{"on a hung one, in the beginning", soakCall{id: 2, service: "grpc", err: unavailable}, 20500, 22500, true},
		{"on a hung one, not known which", soakCall{id: 3, service: "grpc", err: status.Error(codes.DeadlineExceeded, "x")}, 20500, 45000, true},
		{"on a hung one that has to be known as such", soakCall{id: 2, service: "grpc", err: unavailable}, 26000, 27000, false},
		{"cut by the end of the drain", soakCall{id: 1, service: "grpc", err: unavailable}, 39000, 42010, true},
		{"cut before the end of the drain", soakCall{id: 1, service: "grpc", err: unavailable}, 39000, 41500, false},
		{"cut although it was back in time", soakCall{id: 1, service: "grpc", err: unavailable}, 49000, 52010, false},
		{"failed with GOAWAY", soakCall{id: 1, service: "grpc", err: unavailable}, 60000, 60100, false},
		{"a POST that met the end of a connection", soakCall{id: 4, service: "web", shape: "http1 upload", err: unavailable}, 60000, 60100, true},
		{"a GET that did", soakCall{id: 4, service: "web", shape: "http1 GET", idempotent: true, err: unavailable}, 60000, 60100, false},
		{"HTTP/1.1 on a hung one", soakCall{id: 4, service: "web", shape: "http1 GET", err: unavailable}, 71000, 72000, false},
		{"HTTP/2 on a hung one", soakCall{id: 4, service: "web", shape: "h2 GET", err: unavailable}, 71000, 72000, true},
		{"TCP that the killed had not accepted", soakCall{id: 6, service: "tcp", err: unavailable}, 900, 1020, true},
		{"TCP on another", soakCall{id: 7, service: "tcp", err: unavailable}, 900, 1020, false},
		{"begun after the kill, when the machine had stood still for a second", soakCall{id: 2, service: "grpc", err: unavailable}, 84300, 84400, true},
		{"begun long after the kill, although it had", soakCall{id: 2, service: "grpc", err: unavailable}, 88000, 88100, false},
		{"TCP cut short by the kill", soakCall{id: 5, service: "tcp", err: complete(&checker{}, 7)}, 900, 1020, true},
	} {
		tt.c.begun, tt.c.got = at(tt.from), at(tt.to)
		if why := j.allowed(&tt.c); (why != nil) != tt.permitted {
			t.Errorf("%s: allowed because of %v, want %v", tt.name, why, tt.permitted)
		}
		if stoodStill := tt.to > 83_000 && tt.from < 86_000; j.undecided(&tt.c) != stoodStill {
			t.Errorf("%s: judged: %v", tt.name, stoodStill)
		}
	}
}
