package event

import (
	"fmt"
	"sync"
	"testing"
)

func add(l *Log, from, to int) {
	for i := from; i <= to; i++ {
		l.Add(Event{Kind: List, Detail: fmt.Sprint(i)})
	}
}

func ids(events []Event) (all []uint64) {
	for _, e := range events {
		if e.Detail != fmt.Sprint(e.ID) {
			panic(fmt.Sprintf("event %d says %s", e.ID, e.Detail))
		}
		all = append(all, e.ID)
	}
	return all
}

func TestSince(t *testing.T) {
	for _, c := range []struct {
		size, added int
		after       uint64
		want        string
	}{
		{4, 0, 0, "[]"},
		{4, 3, 0, "[1 2 3]"},
		{4, 3, 2, "[3]"},
		{4, 3, 3, "[]"},
		{4, 3, 99, "[]"}, // an ID of another life of the agent
		{4, 4, 0, "[1 2 3 4]"},
		{4, 10, 0, "[7 8 9 10]"}, // the gap shows what was lost
		{4, 10, 8, "[9 10]"},
		{1, 5, 0, "[5]"},
	} {
		l := NewLog(c.size)
		add(l, 1, c.added)
		events, _ := l.Since(c.after)
		if got := fmt.Sprint(ids(events)); got != c.want {
			t.Errorf("size %d, %d added, after %d: %s, want %s", c.size, c.added, c.after, got, c.want)
		}
	}
}

func TestNoRoomIsRoomForOne(t *testing.T) {
	for _, size := range []int{0, -1} {
		l := NewLog(size)
		add(l, 1, 3)
		if events, _ := l.Since(0); fmt.Sprint(ids(events)) != "[3]" {
			t.Errorf("size %d: %v", size, events)
		}
	}
}

func TestMoreIsTold(t *testing.T) {
	l := NewLog(4)
	_, more := l.Since(0)
	select {
	case <-more:
		t.Fatal("told of more before there was any")
	default:
	}
	add(l, 1, 2) // a writer never waits for readers
	<-more
	events, more := l.Since(0)
	if len(events) != 2 {
		t.Fatalf("%d events", len(events))
	}
	add(l, 3, 3)
	<-more
}

// Every reader sees every event once and in order, if it keeps up with the ring.
func TestManyReadersAndWriters(t *testing.T) {
	const writers, each = 4, 500
	l := NewLog(writers * each)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			last := uint64(0)
			for last < writers*each {
				events, more := l.Since(last)
				for _, e := range events {
					if e.ID != last+1 {
						t.Errorf("event %d after %d", e.ID, last)
						return
					}
					last = e.ID
				}
				if len(events) == 0 {
					<-more
				}
			}
		})
	}
	for range writers {
		all.Go(func() {
			for range each {
				l.Add(Event{Kind: Verdict})
			}
		})
	}
	all.Wait()
}

func TestLastAndCounts(t *testing.T) {
	l := NewLog(2)
	if l.Last() != 0 || len(l.Counts()) != 0 {
		t.Error("there was none yet")
	}
	for range 5 { // more than it keeps
		l.Add(Event{Kind: List})
	}
	l.Add(Event{Kind: Mute})
	counts := l.Counts()
	if l.Last() != 6 || counts[List] != 5 || counts[Mute] != 1 {
		t.Errorf("last %d, %v", l.Last(), counts)
	}
	counts[List] = 0
	if l.Counts()[List] != 5 {
		t.Error("a reader changed the log")
	}
}

// Connections come and go by the thousand: they push out no verdict, and are told in order among the others.
func TestConnectionsHaveARingOfTheirOwn(t *testing.T) {
	l := NewLog(8) // and 2 of connections
	kinds := func(after uint64) string {
		events, _ := l.Since(after)
		ids(events)
		text := ""
		for _, e := range events {
			text += fmt.Sprintf("%s %d, ", e.Kind, e.ID)
		}
		return text
	}
	say := func(k Kind) {
		l.mu.Lock()
		next := l.last + 1
		l.mu.Unlock()
		l.Add(Event{Kind: k, Detail: fmt.Sprint(next)})
	}
	say(Connection)
	say(Verdict)
	say(Connection)
	say(Verdict)
	if got, want := kinds(0), "connection 1, verdict 2, connection 3, verdict 4, "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for range 1000 {
		say(Connection)
	}
	say(Verdict)
	if got, want := kinds(0), "verdict 2, verdict 4, connection 1003, connection 1004, verdict 1005, "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := kinds(1003), "connection 1004, verdict 1005, "; got != want {
		t.Errorf("after 1003: %s, want %s", got, want)
	}
	for range 100 {
		say(Verdict)
	}
	if got, want := kinds(0)[:33], "connection 1003, connection 1004,"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// One text that is no UTF-8 would end the API's stream of events for everybody.
func TestDetailsAreText(t *testing.T) {
	l := NewLog(4)
	l.Add(Event{Kind: Config, Detail: "bad \xff\xfe byte"})
	if events, _ := l.Since(0); events[0].Detail != "bad ? byte" {
		t.Errorf("%q", events[0].Detail)
	}
}
