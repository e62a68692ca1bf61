package registrar

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/format"
)

// TestRandom lets etcd, the services, the agent and strangers do anything, in any order, and compares with a model that knows no history: what is wanted and passes its
// probe is there, nothing else of ours is, and what strangers wrote is as they wrote it. LBAGENT_SEED replays one.
func TestRandom(t *testing.T) {
	for range 12 {
		seed := rand.Uint64()
		if replay, err := strconv.ParseUint(os.Getenv("LBAGENT_SEED"), 10, 64); err == nil {
			seed = replay
		}
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			story(t, func(t *testing.T, g *rig) {
				(&chaos{t: t, g: g, rand: rand.New(rand.NewPCG(seed, 1)), configured: map[int]bool{}, up: map[int]bool{}, theirs: map[int]string{}}).run()
			})
		})
	}
}

const chaosServices = 6

// chaos is one random story and its model.
type chaos struct {
	t    *testing.T
	g    *rig
	rand *rand.Rand

	configured map[int]bool
	up         map[int]bool
	drained    [chaosServices]bool
	theirs     map[int]string // keys that a stranger holds, by number
	unsure     bool           // since the last compare etcd was restored, or answers were lost: until the agent has seen what is there, no revision tells it its own keys from others
}

func (c *chaos) reg(i int) Registration {
	return Registration{Service: fmt.Sprint("s", i), Address: fmt.Sprintf("10.0.0.1:%d", 1000+i), Format: []string{format.GRPCNaming, format.Plain, format.GoZero}[i%3]}
}

func (c *chaos) key(i int) string {
	r := c.reg(i)
	key, _, err := format.Encode(r.Format, format.Registration{Service: r.Service, Addr: netip.MustParseAddrPort(r.Address)})
	if err != nil {
		c.t.Fatal(err)
	}
	return key
}

func (c *chaos) regs() []Registration {
	var out []Registration
	for i := range chaosServices {
		if c.configured[i] {
			out = append(out, c.reg(i))
		}
	}
	return out
}

func (c *chaos) run() {
	f := c.g.etcd
	for i := range chaosServices {
		c.up[i] = true
	}
	for step := range 60 {
		i := c.rand.IntN(chaosServices)
		addr := c.reg(i).Address
		switch c.rand.IntN(15) {
		case 0, 1, 2:
			c.configured[i] = !c.configured[i]
			c.g.r.Set(c.regs(), rigTTL)
		case 3:
			c.up[i] = false
			c.g.fails(addr, refused)
		case 4, 5:
			c.up[i] = true
			c.g.passes(addr)
		case 6:
			f.with(func() { f.down = !f.down })
		case 7:
			c.g.stop()
			advance(time.Duration(c.rand.Int64N(int64(2 * rigTTL))))
			c.g.start(c.regs()...)
		case 8:
			f.with(func() { c.revoke(f) })
		case 9:
			f.with(func() {
				if _, stranger := c.theirs[i]; !stranger {
					f.del(c.key(i))
				}
			})
		case 10: // somebody edits our key by hand
			f.with(func() {
				if _, stranger := c.theirs[i]; !stranger && !c.unsure && f.keys[c.key(i)].mod != 0 {
					f.put(c.key(i), "by hand", 0)
				}
			})
		case 11: // a stranger makes the key his own, or leaves
			f.with(func() {
				if _, stranger := c.theirs[i]; stranger {
					f.del(c.key(i))
					delete(c.theirs, i)
					return
				}
				f.del(c.key(i))
				c.theirs[i] = fmt.Sprint("theirs ", step)
				f.put(c.key(i), c.theirs[i], 0)
			})
		case 12:
			if c.drained[i] {
				was, err := c.g.r.Undrain(c.reg(i).Service)
				c.drained[i] = !was || err != nil
			} else if c.configured[i] {
				c.drained[i] = c.g.r.Drain(c.reg(i).Service, false) == nil
			}
		case 13: // restored from a backup: of strangers' keys only, or without our last changes
			f.with(func() { c.restore(f) })
		case 14: // what is asked is done, and not answered
			f.with(func() { f.mute, c.unsure = !f.mute, true })
		}
		advance(time.Duration(c.rand.Int64N(int64(rigTTL / 2))))
		if c.rand.IntN(3) == 0 {
			c.compare(step)
		}
	}
	c.compare(60)
}

// revoke ends our lease, if there is one.
func (c *chaos) revoke(f *fake) {
	for id := range f.leases {
		f.revoke(id)
	}
}

// restore takes etcd back in time.
func (c *chaos) restore(f *fake) {
	for k, h := range f.keys {
		mine := !slices.ContainsFunc(slices.Collect(func(yield func(string) bool) {
			for i := range c.theirs {
				if !yield(c.key(i)) {
					return
				}
			}
		}), func(t string) bool { return t == k })
		switch {
		case mine && (c.rand.IntN(2) == 0 || h.lease == 0): // one that was edited by hand can't be told from a stranger's any more
			delete(f.keys, k)
		case mine:
			h.value = "of then"
			fallthrough
		default:
			h.create, h.mod = min(h.create, 3), min(h.mod, 3)
			f.keys[k] = h
		}
	}
	f.revision, c.unsure = 3, true
	if c.rand.IntN(2) == 0 {
		f.cluster++
	}
}

// compare lets etcd come back and become quiet, and then looks.
func (c *chaos) compare(step int) {
	c.t.Helper()
	f := c.g.etcd
	f.with(func() { f.down, f.mute, c.unsure = false, false, false })
	advance(rigTTL/3 + 3*time.Second)
	var want []string
	for i := range chaosServices {
		_, stranger := c.theirs[i]
		marked := c.reg(i).Format == format.GRPCNaming
		if stranger || c.configured[i] && c.up[i] && (!c.drained[i] || marked) {
			want = append(want, c.key(i))
		}
	}
	slices.Sort(want)
	got := f.values()
	if names := c.g.etcd.names(); !slices.Equal(names, want) {
		c.t.Fatalf("step %d: etcd has %q, want %q", step, names, want)
	}
	for i, value := range c.theirs {
		if got[c.key(i)] != value {
			c.t.Fatalf("step %d: the stranger's %q became %q", step, value, got[c.key(i)])
		}
	}
	for _, s := range c.g.r.Status() {
		var i int
		if _, err := fmt.Sscanf(s.Service, "s%d", &i); err != nil {
			c.t.Fatal(err)
		}
		_, stranger := c.theirs[i]
		if is := !stranger && slices.Contains(want, c.key(i)); s.Announced != is {
			c.t.Fatalf("step %d: status %+v, want announced %v", step, s, is)
		}
	}
}
