package proxy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// 2.11: what a watch does, second by second, with a stream open all the time. Each step is a time and what happens then: "call" opens another stream,
// "read" brings bytes, "frames" HEADERS or DATA, "ack" the answer to the last PING. The loop looks when it is told to, and when something wakes it.
func TestHangWatch(t *testing.T) {
	for name, c := range map[string]struct {
		steps string // "at what, at what"
		until time.Duration
		want  string
		every time.Duration
	}{
		"nothing ever came":           {"", time.Minute, "ping 1s, dead 2s", 0},
		"an ack, then nothing":        {"1010ms ack", time.Minute, "ping 1s, ping 2.01s, dead 3.01s", 0},
		"bytes put it off":            {"900ms read, 1800ms read", time.Minute, "ping 2.8s, dead 3.8s", 0},
		"the answer may take 5 RTT":   {"1400ms ack", time.Minute, "ping 1s, ping 2.4s, dead 4.4s", 0},
		"bytes while a PING is out":   {"1900ms read, 2800ms read", time.Minute, "ping 1s, dead 3.8s", 0},
		"silent and alive for long":   {"1001ms ack, 2002ms ack, 307002ms ack, 612002ms ack", 15 * time.Minute, "ping 1s, ping 2.001s, ping 5m7.001s, ping 10m12.001s", 0},
		"a call has one PING more":    {"1001ms ack, 2002ms ack, 1m call, 61001ms ack, 2m call", 4 * time.Minute, "ping 1s, ping 2.001s, ping 1m1s", 0},
		"frames give all PINGs back":  {"1001ms ack, 2002ms ack, 1m frames, 61001ms ack", 2 * time.Minute, "ping 1s, ping 2.001s, ping 1m1s, ping 1m2.001s, dead 1m3.001s", 0},
		"frames while a PING is out":  {"1001ms frames, 1002ms ack, 2003ms ack", 2 * time.Minute, "ping 1s, ping 2.002s", 0},
		"it has complained":           {"1001ms ack, 2002ms ack, 1m call", 12 * time.Minute, "ping 1s, ping 2.001s, ping 10m12.001s, dead 10m13.001s", 10*time.Minute + 10*time.Second},
		"it hangs when the call goes": {"1001ms ack, 2002ms ack, 1m call", 2 * time.Minute, "ping 1s, ping 2.001s, ping 1m1s, dead 1m2s", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := &hangWatch{silence: hangSilence}
			every := max(c.every, pingEvery)
			start := time.Unix(1e6, 0)
			var got []string
			var frames, calls uint64 = 0, 1
			w.opens(start)
			next := start.Add(hangSilence)
			look := func(now time.Time) (over bool) {
				do, at := w.look(now, frames, calls, every)
				switch do {
				case hangPing:
					got = append(got, fmt.Sprintf("ping %v", now.Sub(start)))
				case hangDead:
					got = append(got, fmt.Sprintf("dead %v", now.Sub(start)))
					return true
				}
				next = at
				return false
			}
			for _, s := range append(strings.Split(c.steps, ", "), c.until.String()+" end") {
				at, what, ok := strings.Cut(s, " ")
				if !ok {
					continue
				}
				d, err := time.ParseDuration(at)
				if err != nil {
					t.Fatal(err)
				}
				now := start.Add(d)
				for !next.After(now) && (what != "end" || next.Before(now)) {
					if look(next) {
						goto over
					}
				}
				switch what {
				case "call":
					calls++
					w.opens(now)
				case "frames":
					frames++
					w.hears(now)
				case "read":
					w.hears(now)
				case "ack":
					w.hears(now)
					if !w.answers(now, w.number) {
						got = append(got, "unexpected ack")
					}
				case "end":
					goto over
				}
				look(now)
			}
		over:
			if g := strings.Join(got, ", "); g != c.want {
				t.Errorf("got  %s\nwant %s", g, c.want)
			}
		})
	}
}

// A loop that slept is no proof against a backend, but only so often.
func TestHangWatchLateLoop(t *testing.T) {
	w := &hangWatch{silence: hangSilence}
	now := time.Unix(1e6, 0)
	w.opens(now)
	now = now.Add(time.Second)
	if do, _ := w.look(now, 0, 1, pingEvery); do != hangPing || !w.suspect() {
		t.Fatalf("%v", do)
	}
	for range maxGrace {
		now = now.Add(10 * time.Second)
		if do, at := w.look(now, 0, 1, pingEvery); do != hangNot || at != now.Add(hangPatience/hangLooks) {
			t.Fatalf("%v, %v", do, at.Sub(now))
		}
	}
	now = now.Add(10 * time.Second)
	if do, _ := w.look(now, 0, 1, pingEvery); do != hangDead {
		t.Errorf("a loop that is always late finds nothing: %v", do)
	}
	if w.answers(now, w.number+1) || !w.answers(now, w.number) || w.answers(now, w.number) {
		t.Error("an answer counts that is none")
	}
}

// A machine that stands still while a PING is out, for any time, from anywhere in it to anywhere, takes nobody who answers for dead: neither the answer nor its reader had that time.
// Who doesn't answer is found a second after it at the latest.
func TestHangWatchStoppedMachine(t *testing.T) {
	const step = 50 * time.Millisecond
	for from := time.Duration(0); from <= hangPatience; from += step {
		for length := step; length <= 3*time.Second; length += step {
			for _, answers := range []bool{true, false} {
				w := &hangWatch{silence: hangSilence}
				now := time.Unix(1e6, 0)
				w.opens(now)
				now = now.Add(hangSilence)
				pinged, stop, goesOn := now, now.Add(from), now.Add(from+length)
				answered := now.Add(6 * step)
				if !answered.Before(stop) {
					answered = answered.Add(length)
				}
				do, at := w.look(now, 0, 1, pingEvery)
				for do != hangDead && (!answers || at.Before(answered)) {
					if now = at; !now.Before(stop) && now.Before(goesOn) {
						now = goesOn
						if answers && !answered.After(now) {
							break // it was read first
						}
					}
					do, at = w.look(now, 0, 1, pingEvery)
				}
				if answers == (do == hangDead) {
					t.Fatalf("stopped from %v for %v: dead %v after %v, and it answers: %v", from, length, do == hangDead, now.Sub(pinged), answers)
				}
				if limit := latest(pinged, goesOn).Add(hangPatience); !answers && now.After(limit) {
					t.Fatalf("stopped from %v for %v: found after %v", from, length, now.Sub(pinged))
				}
			}
		}
	}
}

// strikes is grpc-go's enforcement of keepalive with its defaults (handlePing of its server's transport): PINGs closer than 5 minutes are strikes, what the
// server writes clears them, and the third ends the connection. The C core's and Java's do the same.
type strikes struct {
	wrote bool
	last  time.Time
	n     int
}

func (s *strikes) ping(now time.Time) (tooMany bool) {
	defer func() { s.last = now }()
	if s.wrote {
		s.wrote, s.n = false, 0
		return false
	}
	if s.last.Add(5 * time.Minute).After(now) {
		s.n++
	}
	return s.n > 2
}

// Whatever a service does, and however long its streams are silent, no PING is one too many, and nobody who answers is taken for dead: hours of calls and
// messages at random, over ways of any length.
func TestHangWatchNeverTooManyPings(t *testing.T) {
	all := 0
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		way := []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 300 * time.Millisecond, 900 * time.Millisecond}[rnd.IntN(5)]
		sends := time.Duration(rnd.Int64N(int64([]time.Duration{3 * time.Second, time.Minute, 20 * time.Minute}[rnd.IntN(3)]))) + time.Millisecond
		asks := time.Duration(rnd.Int64N(int64([]time.Duration{3 * time.Second, time.Minute, 20 * time.Minute}[rnd.IntN(3)]))) + time.Millisecond
		var server strikes
		var toServer, toUs []arrival
		start := time.Unix(1e6, 0)
		soon := func(mean time.Duration) time.Duration { return time.Duration(rnd.ExpFloat64() * float64(mean)) }
		w := &hangWatch{silence: hangSilence, rtt: 2 * way} // of the connect
		var frames, calls uint64 = 0, 1
		w.opens(start)
		next, nextSend, nextAsk := start.Add(hangSilence), start.Add(soon(sends)), start.Add(soon(asks))
		pings := 0
		look := func(now time.Time) {
			do, at := w.look(now, frames, calls, pingEvery)
			switch do {
			case hangPing:
				pings++
				// A PING may be quicker than the one before it, but not overtake it.
				toServer = append(toServer, arrival{latest(now.Add(way+time.Duration(rnd.Int64N(int64(way/4+1)))), lastOf(toServer)), w.number})
			case hangDead:
				t.Fatalf("seed %d: taken for dead after %v", seed, now.Sub(start))
			}
			next = at
		}
		answerAt := func(now time.Time, number uint64) {
			toUs = append(toUs, arrival{latest(now.Add(way+time.Duration(rnd.Int64N(int64(way/4+1)))), lastOf(toUs)), number})
		}
		for now := start; now.Sub(start) < 3*time.Hour; {
			now = next
			for _, other := range []time.Time{nextSend, nextAsk, firstOf(toServer, next), firstOf(toUs, next)} {
				if other.Before(now) {
					now = other
				}
			}
			switch {
			case len(toServer) > 0 && !toServer[0].at.After(now):
				if server.ping(now) {
					t.Fatalf("seed %d: too many PINGs after %v: %d of them", seed, now.Sub(start), pings)
				}
				answerAt(now, toServer[0].number)
				toServer = toServer[1:]
			case len(toUs) > 0 && !toUs[0].at.After(now):
				w.hears(now)
				if n := toUs[0].number; n == 0 {
					frames++
				} else {
					w.answers(now, n)
				}
				toUs = toUs[1:]
				look(now)
			case !nextSend.After(now):
				server.wrote = true
				answerAt(now, 0)
				nextSend = now.Add(soon(sends))
			case !nextAsk.After(now):
				calls++
				w.opens(now)
				look(now)
				nextAsk = now.Add(soon(asks))
			default:
				look(now)
			}
		}
		all += pings
	}
	if all < 60*36 { // one in 5 minutes
		t.Errorf("only %d PINGs", all)
	}
}

// arrival is something on its way.
type arrival struct {
	at     time.Time
	number uint64 // of a PING, or its answer; 0: frames
}

func lastOf(q []arrival) time.Time {
	if len(q) == 0 {
		return time.Time{}
	}
	return q[len(q)-1].at
}

func firstOf(q []arrival, none time.Time) time.Time {
	if len(q) == 0 {
		return none
	}
	return q[0].at
}
