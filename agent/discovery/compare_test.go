package discovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/service"
)

// same reports whether there is no difference.
func (c *Comparison) same() bool { return c.Missings+c.Gones+c.Changeds == 0 }

func TestCompareWith(t *testing.T) {
	backend := func(key string, modified int64) *service.Backend {
		return &service.Backend{Key: key, Modified: modified}
	}
	r := records{
		shown:  []*service.Backend{backend("/a", 1), backend("/b", 2), backend("/b", 2), backend("/gone", 3)},
		hidden: []*service.Backend{backend("/c", 4)},
		other:  map[string]other{"/bad": {reason: "x", modified: 5}},
	}
	there := map[string]int64{"/a": 1, "/b": 2, "/c": 4, "/bad": 5, "/gone": 3}
	if c := r.compareWith(there, 9, 8); !c.same() || c.Keys != 5 || c.Revision != 9 || c.Known != 8 {
		t.Errorf("the same: %+v", c)
	}
	delete(there, "/gone")
	there["/b"], there["/new"], there["/\xff"] = 7, 6, 6
	c := r.compareWith(there, 9, 8)
	if got := fmt.Sprint(c.Missing, c.Gone, c.Changed, c.Missings, c.Gones, c.Changeds); got != "[/new /?] [/gone] [/b] 2 1 1" {
		t.Error(got)
	}
	for i := range 100 {
		there[fmt.Sprintf("/x%03d", i)] = 1
	}
	if c := r.compareWith(there, 9, 8); len(c.Missing) != maxDiffer || c.Missings != 102 || !slices.IsSorted(c.Missing) {
		t.Errorf("%d of %d are named", len(c.Missing), c.Missings)
	}
}

// A look at a spool finds every list that the agent wrote, and says what it can't read.
func TestReadSpool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lists")
	if _, _, err := ReadSpool(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no spool: %v", err)
	}
	s := newSpool(dir, hclog.NewNullLogger())
	f, l := sampleFollow(), sampleList()
	confirmed := time.Now().Add(-time.Hour).Truncate(time.Second)
	l.Confirmed = confirmed
	s.put(f, l)
	other := f
	other.Name, other.Prefix = "another", "/other/"
	s.put(other, l)
	s.flush()
	if err := os.WriteFile(filepath.Join(dir, "torn"+listSuffix), []byte("lbspool\nxxx"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"+listSuffix+badSuffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lists, unread, err := ReadSpool(dir)
	if err != nil || len(lists) != 2 || lists[0].Service != "another" || lists[1].Service != f.Name {
		t.Fatalf("lists %v, %v", lists, err)
	}
	if got := lists[1]; len(got.Backends) != len(l.Backends) || got.Revision != l.Revision || !got.Confirmed.Equal(confirmed) || got.Source != service.FromSpool {
		t.Errorf("list %+v", got)
	}
	if len(unread) != 1 || !strings.HasPrefix(unread[0], "torn.list: ") {
		t.Errorf("unread %q", unread)
	}
}

// What etcd has at this moment is compared over pages, and what a select: leaves out or a bad value hides is known, too.
func TestCompareWithEtcd(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	fill(t, c, "services/user/", keysPage+5)
	put(t, c, "services/user/bad", "garbage")
	put(t, c, "services/user2/a", record("10.0.0.9:80", 5)) // a neighbour
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"), Follow{Name: "still", Static: []service.Backend{{Addr: mustAddr("10.0.0.1:80"), Weight: 1}}})
	eventually(t, time.Minute, "the list", func() bool { l := d.last("user"); return l != nil && len(l.Backends) == keysPage+5 })
	got, err := d.Compare(t.Context(), "user")
	if err != nil || !got.same() || got.Keys != keysPage+6 || got.Known == 0 || got.Revision < got.Known {
		t.Errorf("%+v, %v", got, err)
	}
	for _, name := range []string{"still", "nosuch"} {
		if _, err := d.Compare(t.Context(), name); !errors.Is(err, ErrNotInEtcd) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Compare(ctx, "user"); err == nil {
		t.Error("a question that nobody waits for is answered")
	}
}
