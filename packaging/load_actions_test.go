package packaging

import (
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"
)

// loadRounds is how long TestLoad is: 0 is not at all, since that takes minutes.
var loadRounds = flag.Int("load", 0, "TestLoad: 1 is once each of all actions with streams of 8 s, about three minutes; 5 is the whole proof, with streams of 60 s")

// loadPackages saves the time to build them, or has an upgrade from or to a release.
var loadPackages = flag.String("load-packages", "", "TestLoad: OLD.deb,NEW.deb; by default both are built from this tree")

// TestLoad says what the callers' ports and sockets do while something happens to the agent; the README's table has a row for each. `make test-systemd` runs it.
func TestLoad(t *testing.T) {
	if *loadRounds == 0 {
		t.Skip("make test-systemd runs it")
	}
	old, fresh, given := strings.Cut(*loadPackages, ",")
	if !given {
		old, fresh = build(t, "..", "v0.1.0").deb, build(t, "..", "v0.2.0").deb
	}
	m := boot(t, newRoot(t))
	debs := []string{m.copyIn(t, old), m.copyIn(t, fresh)}
	a := newAround(t, m)
	m.run(t, "dpkg -i "+debs[0])
	m.write(t, "/etc/lbagent/lbagent.yaml", worldConfig)
	m.run(t, "systemctl reload lbagent")
	s := &story{around: a, rounds: *loadRounds, long: 8 * time.Second, debs: debs}
	if s.rounds > 1 {
		s.long, s.strict = time.Minute, true
	}
	m.run(t, "lbagent register mine "+hostAddr+":9011 && lbagent lookup later")
	eventually(t, "registrations", func() error {
		if got := a.registry(t); len(got.Keys) != 2 {
			return fmt.Errorf("etcd has %+v", got)
		}
		return nil
	})
	eventually(t, "what is known of a dead backend", func() error {
		_, _ = m.try("curl -s http://127.0.0.1:7005/")
		if out := m.run(t, "lbagent list sick"); !strings.Contains(out, "unreachable") {
			return errors.New(out)
		}
		return nil
	})
	// A process that is killed leaves what it learned at least 5 s before (1.8).
	eventually(t, "the spool", func() error {
		out, err := m.try("cd /var/lib/lbagent/lists && ls grpc* web* tcp*")
		if err != nil {
			return errors.New(out)
		}
		return nil
	})
	defer func() { t.Logf("what callers saw:\n%s", table(a.rows)) }()
	acts, judged := 0, 0
	for _, act := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"nothing", s.idle}, {"reload", s.reload}, {"upgrade", s.upgrade}, {"failed upgrade", s.upgradeFails}, {"package", s.upgradePackage},
		{"restart", s.restart}, {"kill", s.kill}, {"freeze", s.freeze}, {"stop", s.stop}, {"crash loop", s.crashLoop},
		{"shutdown", s.shutdown},
	} {
		t.Run(act.name, func(t *testing.T) {
			acts++
			act.do(t)
			judged++
		})
	}
	if judged*2 < acts && !t.Failed() {
		t.Errorf("%d of %d actions could be judged: this machine is too busy", judged, acts)
	}
}

// story is what happens to the agent.
type story struct {
	*around
	rounds int
	long   time.Duration
	debs   []string // older and newer
	turns  int      // from one to the other
}

// lossless: nobody notices.
var lossless = rule{wait: 50 * time.Millisecond}

// idle: doctor finds nothing that is wrong, and no call fails.
func (s *story) idle(t *testing.T) {
	s.nothing(t)
	s.m.well(t)
}

// reload: what did not change isn't touched (6.1).
func (s *story) reload(t *testing.T) {
	pid := s.pid(t)
	s.during(t, "reload", s.long, lossless, func() {
		for i := range 4 * s.rounds {
			s.m.write(t, "/etc/lbagent/services.d/more.yaml", fmt.Sprintf("services:\n  - {name: more, backends: [\"%s:9021\"], listen: [%d]}\n", hostAddr, 7100+i))
			s.m.run(t, "systemctl reload lbagent")
		}
	})
	if got := s.pid(t); got != pid {
		t.Errorf("process %s became %s", pid, got)
	}
}

// drainLimit is what running calls get at a restart and at a stop (6.2).
const drainLimit = 5 * time.Second

// drained is a restart's: callers wait in the backlog, and what takes longer than the limit ends (6.2).
var drained = rule{wait: time.Second, away: drainLimit, ends: map[string][]string{stream: {unavailable}, transfer: {cut}}}

func (s *story) restart(t *testing.T) {
	before := s.registry(t)
	for range s.rounds {
		s.during(t, "restart", s.long, drained, func() { s.m.run(t, "systemctl restart lbagent") })
	}
	s.registered(t, before)
}

// killed: what runs ends with the process; who comes waits in the backlog until the next one is there, at the API's sockets as well.
// Five of them in a minute would be a crash loop.
var killed = rule{wait: 500 * time.Millisecond, ends: map[string][]string{"*": {unavailable, cut}}, once: true}

func (s *story) kill(t *testing.T) {
	defer s.registered(t, s.registry(t))
	for range min(3, s.rounds) {
		pid := s.pid(t)
		s.during(t, "kill -9", s.long, killed, func() {
			s.m.run(t, "kill -9 "+pid)
			s.serves(t, pid)
		})
	}
}

// freeze: the watchdog finds that nothing moves, and what follows is a kill.
func (s *story) freeze(t *testing.T) {
	watchdog, err := time.ParseDuration(strings.ReplaceAll(s.m.run(t, "systemctl show -P WatchdogUSec lbagent"), " ", ""))
	if err != nil || watchdog == 0 {
		t.Fatalf("no watchdog: %v", err)
	}
	s.m.run(t, "systemctl restart lbagent") // after three kills this would be the fifth start in a minute, a crash loop
	pid := s.pid(t)
	s.during(t, "freeze", s.long, rule{wait: time.Second, away: watchdog, ends: killed.ends, once: true}, func() {
		s.m.run(t, "kill -STOP "+pid)
		s.serves(t, pid)
	})
}

// upgrade: the next process takes all over, the one before ends when its last call has (6.3). Whoever asks sees the same right after it.
func (s *story) upgrade(t *testing.T) {
	before := s.registry(t)
	for range s.rounds {
		var known, now string
		seen := s.during(t, "upgrade", s.long, lossless, func() {
			next, pid := s.next(), s.pid(t)
			known = s.known(t)
			begun := time.Now()
			s.m.run(t, "rm -rf /root/next && dpkg-deb -x "+next+" /root/next && mv /root/next/usr/bin/lbagent /usr/bin/lbagent && lbagent upgrade")
			now = s.known(t)
			s.upgraded(t, pid)
			if time.Since(begun) > again/2 { // the stream, which goes on in the process of before, may end
				return
			}
			// Package scripts look for these words.
			if out := s.m.fails(t, "lbagent upgrade"); !strings.Contains(out, "try again") || !strings.Contains(out, "drain_timeout") {
				t.Errorf("lbagent upgrade while the last one drains says %q", out)
			}
		})
		s.unchanged(t, "upgrade", known, now, seen)
		s.registered(t, before)
	}
}

// next is the other package than the one that is installed.
func (s *story) next() string {
	s.turns++
	return s.debs[s.turns%2]
}

// upgradeFails: what can't serve doesn't take over, the process of before goes on, and systemctl status says so.
func (s *story) upgradeFails(t *testing.T) {
	pid, known, before := s.pid(t), s.known(t), s.registry(t)
	s.m.run(t, "cp /usr/bin/lbagent /root/good")
	const dropIn = "/etc/lbagent/services.d/zz.yaml"
	for _, one := range []struct{ what, do, says string }{
		{"ends at once", "printf '#!/bin/sh\nexit 1\n' >/root/bad", "ended before it was ready"},
		{"is never ready", "printf '#!/bin/sh\nexec sleep 60\n' >/root/bad", "not ready in time"},
		{"finds a mistake in the configuration", "cp /root/good /root/bad && echo 'services: [{name: web}]' >" + dropIn, dropIn + ":1"},
	} {
		seen := s.during(t, "upgrade to what "+one.what, again, lossless, func() {
			s.m.run(t, one.do+" && chmod 755 /root/bad && mv /root/bad /usr/bin/lbagent")
			begun := time.Now()
			out := s.m.fails(t, "/root/good upgrade")
			if took := time.Since(begun); took > 30*time.Second { // 10 s, and what this machine takes
				t.Errorf("an upgrade to what %s fails after %v", one.what, took)
			}
			if !strings.Contains(out, one.says) || strings.Contains(out, "try again") {
				t.Errorf("upgrade to what %s says %q, want %q", one.what, out, one.says)
			}
			if out := s.m.run(t, "systemctl status -l lbagent | grep Status:"); !strings.Contains(out, "the upgrade failed") || !strings.Contains(out, one.says) {
				t.Errorf("systemctl status says\n%s", out)
			}
			s.m.run(t, "rm -f "+dropIn+" && cp /root/good /usr/bin/lbagent.new && mv /usr/bin/lbagent.new /usr/bin/lbagent")
		})
		if got := s.pid(t); got != pid {
			t.Errorf("%s: process %s became %s", one.what, pid, got)
		}
		s.unchanged(t, one.what, known, s.known(t), seen)
	}
	s.registered(t, before)
}

// packaged: as lossless, beside a package manager that unpacks and syncs: 107 ms were seen with nothing else to do, half of it for calls on kept connections as well.
var packaged = rule{wait: 150 * time.Millisecond}

// upgradePackage is the same by the package manager, to the newer package and back.
func (s *story) upgradePackage(t *testing.T) {
	for range 2 {
		s.during(t, "dpkg -i", again, packaged, func() {
			pid := s.pid(t)
			s.m.run(t, "dpkg -i "+s.next())
			s.upgraded(t, pid)
		})
	}
	if s.rounds == 1 {
		return
	}
	// One that comes while the last one drains is tried for 10 s, then it is a restart, which ends what drains, too (6.2).
	both := "dpkg -i " + s.debs[1] + " && dpkg -i " + s.debs[0]
	s.during(t, both, s.long, drained, func() {
		pid := s.pid(t)
		s.m.run(t, both)
		s.upgraded(t, pid)
	})
}

// upgraded: another process than before is systemd's, and it is of the version that is installed.
func (s *story) upgraded(t *testing.T, before string) {
	t.Helper()
	if got := s.pid(t); got == before {
		t.Errorf("still process %s", got)
	}
	installed := s.m.run(t, "/usr/bin/lbagent version | head -1")
	if out := s.m.run(t, "$(readlink -f /proc/"+s.pid(t)+"/exe) version | head -1"); out != installed {
		t.Errorf("%s runs, %s is installed", out, installed)
	}
}

// crashLoop: no client hangs for longer than 5 s, and starts go on for ever (6.6).
func (s *story) crashLoop(t *testing.T) {
	loop := rule{wait: time.Second, away: 5 * time.Second, ends: map[string][]string{"*": {refused, unavailable, cut}}, once: true}
	got := s.during(t, "crash loop", 0, loop, func() {
		for range 4 { // each of them has counted itself
			pid := s.pid(t)
			s.m.run(t, "kill -9 "+pid)
			s.serves(t, pid)
		}
		s.m.run(t, "kill -9 "+s.pid(t))
		eventually(t, "words about it", func() error {
			if line := s.m.run(t, "systemctl show -P StatusText lbagent"); !strings.HasPrefix(line, "a crash loop: ") {
				return errors.New(line)
			}
			return nil
		})
		s.serves(t, "")
	})
	if got["tcp new"].Failed[refused] == 0 {
		t.Error("the port doesn't refuse")
	}
	s.m.run(t, "journalctl --no-pager -q -o cat -u lbagent -p err | grep 'a crash loop'")
	s.m.run(t, "systemctl restart lbagent")
	s.during(t, "after the crash loop", 2*time.Second, rule{wait: time.Second}, func() {}) // nothing fails any more; the first calls still find a process that has just begun
}

// serves waits for another process than before.
func (s *story) serves(t *testing.T, before string) {
	t.Helper()
	eventually(t, "the next process", func() error {
		out, err := s.m.try("systemctl is-active lbagent && lbagent status")
		if err != nil {
			return errors.New(out)
		}
		if s.pid(t) == before {
			return errors.New("the same process")
		}
		return nil
	})
}

// stop: the ports refuse at once, and the host's registrations stay for as long as their lease (5.3).
func (s *story) stop(t *testing.T) {
	away := 6 * time.Second // longer than lbagent-again.timer takes, which is to be stopped as well
	if s.rounds > 1 {
		away = 35 * time.Second
	}
	before := s.registry(t)
	stopped := rule{wait: time.Second, away: drainLimit, ends: map[string][]string{"*": {refused, unavailable, cut}}, once: true}
	s.during(t, "stop", s.long, stopped, func() {
		s.m.run(t, "systemctl stop lbagent")
		s.m.fails(t, "systemctl is-active lbagent")
		s.m.run(t, "grep "+backendsOf("web")[0]+" /run/lbagent/lists/web")
		<-time.After(away)
		if got := s.registry(t); len(got.Keys) != 2 || got.Gone != before.Gone {
			t.Errorf("after %v without an agent etcd has %+v", away, got)
		}
		// Though somebody asks all the time, and the timer would have been due.
		if out := s.m.run(t, "systemctl list-units --no-legend --plain --state=active,activating 'lbagent*'"); out != "" {
			t.Errorf("the stop left\n%s", out)
		}
		s.m.run(t, "systemctl start lbagent")
	})
	s.registered(t, before)
	s.during(t, "after stop and start", 2*time.Second, lossless, func() {})
}

// shutdown: the host's registrations go first, while its services still serve (5.3). It is the end of the machine.
func (s *story) shutdown(t *testing.T) {
	if len(s.registry(t).Keys) == 0 {
		t.Fatal("before the shutdown etcd has nothing of this host")
	}
	s.m.powerOff(t)
	if got := s.registry(t).Keys; len(got) > 0 {
		t.Errorf("after the shutdown etcd has %v", got)
	}
}
