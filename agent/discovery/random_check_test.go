package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// rightWithin is a bound that says that lists never become right; how soon they do is measured.
const rightWithin = time.Minute

// check is what was found out about lists.
type check struct {
	seen    map[string]int           // lists of this agent that were looked at, by service
	last    map[string]*service.List // by service
	back    map[string]int           // lives in which revisions began anew, as the lists of a service say
	pending []pending

	lives                      int // of etcd, less one
	lists, compared, compacted int
	orphaned                   int // backends
	sizes                      map[string][]sized
	epochs, former             map[uint64]bool                 // of lists, and those of before the last restore
	orphans                    map[string]map[string]time.Time // of the last list, by service and address, with their since
	whole                      map[string]*service.List        // the last list, by service
	died                       map[string]death                // keys that a lease took with it, and that nobody has written since
	excused                    map[string]bool                 // services whose orphans may leave without a rule: until the next look, or the next quiet
	gone                       map[gone]time.Time              // orphans that the second witness says are gone, with their since
	musts, gones               int
	took                       []time.Duration
	done                       map[string]int
}

// pending is a list that has to be compared with etcd.
type pending struct{ *service.List }

// sized is how many backends a list had, orphans included, and which.
type sized struct {
	at     time.Time
	listed int
	all    map[string]bool
}

func (c *check) init() {
	c.epochs, c.former = map[uint64]bool{}, map[uint64]bool{}
	c.sizes, c.orphans, c.whole = map[string][]sized{}, map[string]map[string]time.Time{}, map[string]*service.List{}
	c.died, c.excused, c.gone = map[string]death{}, map[string]bool{}, map[gone]time.Time{}
	c.last, c.back, c.done = map[string]*service.List{}, map[string]int{}, map[string]int{}
}

func (c *check) count(name string) { c.done[name]++ }

// collect looks at the lists that have come since the last time.
func (w *world) collect() {
	for _, name := range followed() {
		for _, l := range w.d.since(name, w.check.seen[name]) {
			w.check.seen[name]++
			w.look(name, l)
		}
	}
}

// look is what a list must be whatever happens.
func (w *world) look(name string, l *service.List) {
	c := &w.check
	c.lists++
	if old := c.last[name]; l.Source == service.FromEtcd && old != nil && (l.Epoch != old.Epoch || l.Revision < old.Revision) {
		if c.back[name]++; c.back[name] > c.lives {
			w.fail("%s: epoch %x revision %d after epoch %x revision %d, and etcd was restored %d times", name, l.Epoch, l.Revision, old.Epoch, old.Revision, c.lives)
		}
	}
	w.mustBeOrphans(name, l)
	if l.Source == service.FromEtcd { // a spooled list may be of an older revision at which etcd had the same
		c.last[name] = l
	}
	listed, orphans := parted(l)
	w.lookAtOrphans(name, listed, orphans)
	switch l = listed; name {
	case idle:
		if addrs(l) != "10.2.0.1:80 10.2.0.2:80 10.2.0.3:80" {
			w.fail("%s became %q", idle, addrs(l))
		}
	case steady:
		if !strings.Contains(addrs(l), "10.1.0.1:80 10.1.0.2:80 10.1.0.3:80") {
			w.fail("%s became %q", steady, addrs(l))
		}
	}
	if l.Source == service.FromEtcd && !refollowed(l) {
		c.pending = append(c.pending, pending{l})
		c.epochs[l.Epoch] = true
	}
}

// parted tells what etcd says from what the guard adds (1.9).
func parted(l *service.List) (listed *service.List, orphans []*service.Backend) {
	if l == nil {
		return nil, nil
	}
	only := *l
	only.Backends, orphans = splitOrphans(l.Backends)
	return &only, orphans
}

// refollowed reports whether l was read as records of another format.
func refollowed(l *service.List) bool {
	return slices.ContainsFunc(l.Bad, func(b service.BadRecord) bool { return strings.Contains(b.Reason, "host:port") })
}

// since are the lists of name from the nth on.
func (r *recorder) since(name string, n int) []*service.List {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lists[name][n:])
}

// compareLists compares the lists that have come with what etcd had at their revisions.
func (w *world) compareLists() {
	w.collect()
	c := &w.check
	for len(c.pending) > 0 {
		l := c.pending[0]
		ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
		r, err := w.admin().Get(ctx, "services/"+l.Service+"/", clientv3.WithPrefix(), clientv3.WithRev(l.Revision))
		cancel()
		switch {
		case errors.Is(err, rpctypes.ErrCompacted):
			c.compacted++
		case errors.Is(err, rpctypes.ErrFutureRev) && c.former[l.Epoch]:
			c.compacted++ // published again before the agent learned of the restore
		case errors.Is(err, rpctypes.ErrFutureRev):
			w.fail("%s: a list of revision %d, which etcd never had", l.Service, l.Revision)
		case err != nil:
			w.note("compare: %v", err)
			return // later
		default:
			c.compared++
			if got, want := describe(l.List), describeKeys(w.t, r.Kvs); got != want && !c.former[l.Epoch] {
				w.fail("%s at revision %d was\n%s, in etcd it was\n%s", l.Service, l.Revision, got, want)
			}
		}
		c.pending = c.pending[1:]
	}
}

// serves returns when etcd serves.
func (w *world) serves() time.Time {
	w.mustWrite("write", func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, "quiet", "yes")
		return err
	})
	return time.Now()
}

// quiet mends what is wrong, and measures how long lists take to become what etcd holds; of some times, how long registrations take, too.
func (w *world) quiet() {
	w.note("quiet")
	registrations := w.rng.IntN(3) == 0
	w.mendAll()
	begin := w.serves()
	trace := w.slow.begin(w)
	for {
		looked := time.Now()
		what := w.wrong()
		trace.slowest = max(trace.slowest, time.Since(looked))
		if what == "" {
			break
		}
		if time.Since(begin) > rightWithin {
			w.fail("not right after %v: %s\nlog: %s", rightWithin, what, lastLines(w.d.log.String(), 40))
		}
		trace.sample(w, what)
		w.wait(time.Millisecond)
	}
	took := trace.end(w, time.Since(begin))
	w.check.took = append(w.check.took, took)
	w.note("right after %v", took.Round(time.Millisecond))
	w.collect()
	w.haveLeft()
	clear(w.check.excused)
	if registrations {
		w.settle(begin)
	}
	w.compareLists()
}

// wrong says what differs between etcd and the lists, "" if nothing.
func (w *world) wrong() string {
	for _, name := range followed() {
		var r *clientv3.GetResponse
		w.mustWrite("read", func(ctx context.Context, c *clientv3.Client) (err error) {
			r, err = c.Get(ctx, "services/"+name+"/", clientv3.WithPrefix())
			return err
		})
		listed, _ := parted(w.d.last(name))
		if got, want := describe(listed), describeKeys(w.t, r.Kvs); got != want {
			return fmt.Sprintf("%s is\n%s, in etcd it is\n%s", name, got, want)
		}
	}
	return ""
}

func lastLines(s string, n int) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
