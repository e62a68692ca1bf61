package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// KeepVersions is how many versions of an item the history has: each is a key of its own, since etcd forgets old revisions.
	KeepVersions = 10
	// MaxChanges is how many items one Write may change: etcd takes 128 operations in a transaction, and each change takes up to four.
	MaxChanges = 30

	keepRemoved = 1000 // names in the mark of removed items
	writeTries  = 10

	writeTimeout = 10 * time.Second
)

// Errors of Store.
var (
	ErrNone     = errors.New("no such item")
	ErrNotThen  = errors.New("the item was changed by somebody else meanwhile")
	ErrNothing  = errors.New("nothing to change")
	errConflict = errors.New("other people's changes came first, each time")
)

// Store reads and writes the fleet's configuration for a person. Every write is one transaction, which holds only if nobody has written to the fleet since what it was judged by was
// read, with this tool or any other.
type Store struct {
	client  etcd.Client
	prefix  string // ends in /
	history string // ends in /
}

// NewStore is the store of the items below prefix.
func NewStore(c etcd.Client, prefix string) *Store {
	return &Store{client: c, prefix: prefix, history: HistoryPrefix(prefix)}
}

// HistoryPrefix is where the versions of the items below prefix are: beside it, so that agents don't read them.
func HistoryPrefix(prefix string) string { return strings.TrimSuffix(prefix, "/") + ".history/" }

// Version is one version of an item.
type Version struct {
	Key     string    `json:"key"`
	Version int       `json:"version"` // 1, 2, 3 ...
	Time    time.Time `json:"time"`    // by the writer's clock
	Author  string    `json:"author"`
	Reason  string    `json:"reason,omitempty"`
	Removed bool      `json:"removed,omitempty"`
	Text    string    `json:"text,omitempty"`
}

// Change is what Write does to one item.
type Change struct {
	Key    string
	Text   string
	Remove bool
	Over   int // the version that it replaces; 0 = whichever there is
}

// By says who writes, and why.
type By struct {
	Time   time.Time
	Author string
	Reason string
}

// Snapshot is all items at one revision, by key.
type Snapshot struct {
	Revision int64
	Items    []Entry

	removed []string
}

// Find returns an item.
func (s *Snapshot) Find(key string) (Entry, bool) {
	i, ok := slices.BinarySearchFunc(s.Items, key, func(e Entry, key string) int { return strings.Compare(e.Key, key) })
	if !ok {
		return Entry{}, false
	}
	return s.Items[i], true
}

// Read reads all items.
func (s *Store) Read(ctx context.Context) (*Snapshot, error) {
	out := &Snapshot{}
	err := s.pages(ctx, s.prefix, &out.Revision, func(kv *mvccpb.KeyValue) {
		key := strings.TrimPrefix(string(kv.Key), s.prefix)
		if key == removedKey {
			var r removals
			if json.Unmarshal(kv.Value, &r) == nil {
				out.removed = r.Keys
			}
			return
		}
		out.Items = append(out.Items, Entry{Key: key, Now: string(kv.Value), Modified: kv.ModRevision})
	})
	slices.SortFunc(out.Items, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	return out, err
}

// History returns the versions of an item and of its variants, of all items if key is "", in the order of their keys, then the newest first.
func (s *Store) History(ctx context.Context, key string) ([]Version, error) {
	from := s.history
	if key != "" {
		from += key + "/"
	}
	return s.versions(ctx, from, new(int64))
}

// versions reads a part of the history at rev, or now if that is 0; then it sets rev.
func (s *Store) versions(ctx context.Context, from string, rev *int64) ([]Version, error) {
	var out []Version
	err := s.pages(ctx, from, rev, func(kv *mvccpb.KeyValue) {
		key := strings.TrimPrefix(string(kv.Key), s.history)
		i := strings.LastIndexByte(key, '/')
		n, err := strconv.Atoi(key[i+1:])
		var v Version
		if i < 0 || err != nil || json.Unmarshal(kv.Value, &v) != nil {
			return // not written by Write
		}
		v.Key, v.Version = key[:i], n
		out = append(out, v)
	})
	slices.SortStableFunc(out, func(a, b Version) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return b.Version - a.Version
	})
	return out, err
}

// Get returns a version of an item that the history has.
func (s *Store) Get(ctx context.Context, key string, version int) (Version, error) {
	all, err := s.History(ctx, key)
	if err != nil {
		return Version{}, err
	}
	var have []string
	for _, v := range all {
		if v.Key != key {
			continue
		}
		if v.Version == version {
			return v, nil
		}
		have = append(have, strconv.Itoa(v.Version))
	}
	if len(have) == 0 {
		return Version{}, fmt.Errorf("%w: %s has no history", ErrNone, key)
	}
	return Version{}, fmt.Errorf("%w: %s has no version %d, there are %s", ErrNone, key, version, strings.Join(have, ", "))
}

// Written is what Write did.
type Written struct {
	Revision int64     // of etcd
	Versions []Version // the new ones, as the changes were given
	Before   []string  // the texts that they replaced; "" = none
}

// Write makes all changes, or none. check judges what the fleet would be; it is asked again if somebody else was faster, with what they made of it. A change to what is there already
// is left out; if nothing is left, the error is ErrNothing.
func (s *Store) Write(ctx context.Context, by By, changes []Change, check func(now *Snapshot) error) (*Written, error) {
	if len(changes) > MaxChanges {
		return nil, fmt.Errorf("%d items at once are too many: at most %d can be changed in one transaction", len(changes), MaxChanges)
	}
	for try := range writeTries {
		if try > 0 {
			etcd.Sleep(ctx, rand.N(time.Duration(try)*50*time.Millisecond), nil)
		}
		now, err := s.Read(ctx)
		if err != nil {
			return nil, err
		}
		if err := check(now); err != nil {
			return nil, err
		}
		w, ok, err := s.commit(ctx, by, changes, now)
		if err != nil || ok {
			return w, err
		}
	}
	return nil, errConflict
}

// commit writes changes to what was there at now; it is false if somebody has written since.
func (s *Store) commit(ctx context.Context, by By, changes []Change, now *Snapshot) (*Written, bool, error) {
	w := &Written{}
	// Nothing below the prefix was written since: the judgement still holds. That keys went meanwhile changes no judgement, except where this writes.
	conditions := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.prefix).WithPrefix(), "<", now.Revision+1)}
	var ops []clientv3.Op
	removed := slices.Clone(now.removed)
	for _, c := range changes {
		old, there := now.Find(c.Key)
		if there && !c.Remove && old.Now == c.Text && c.Over == 0 || !there && c.Remove && slices.Contains(removed, c.Key) {
			continue
		}
		rev := now.Revision
		past, err := s.versions(ctx, s.history+c.Key+"/", &rev)
		if err != nil {
			return nil, false, err
		}
		past = slices.DeleteFunc(past, func(v Version) bool { return v.Key != c.Key })
		last := 0
		if len(past) > 0 {
			last = past[0].Version
		}
		if c.Over > 0 && (last != c.Over || there && old.Now != past[0].Text) {
			return nil, false, fmt.Errorf("%s: %w: version %d is not the latest any more, %d is", c.Key, ErrNotThen, c.Over, last)
		}
		var add []Version
		if there && (last == 0 || past[0].Removed || past[0].Text != old.Now) {
			// Somebody wrote it with another tool: what they wrote must not be lost.
			last++
			add = append(add, Version{Key: c.Key, Version: last, Time: by.Time, Author: "unknown", Reason: "written without lbagent config, before " + by.Time.UTC().Format(time.DateTime) + " UTC", Text: old.Now})
		}
		last++
		add = append(add, Version{Key: c.Key, Version: last, Time: by.Time, Author: by.Author, Reason: by.Reason, Removed: c.Remove, Text: c.Text})
		item := s.prefix + c.Key
		conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(item), "=", old.Modified))
		removed = slices.DeleteFunc(removed, func(k string) bool { return k == c.Key })
		if c.Remove {
			ops, removed = append(ops, clientv3.OpDelete(item)), append(removed, c.Key)
		} else {
			ops = append(ops, clientv3.OpPut(item, c.Text))
		}
		for _, v := range add {
			text, err := json.Marshal(v)
			if err != nil {
				return nil, false, fmt.Errorf("write %s: %w", c.Key, err)
			}
			key := s.versionKey(c.Key, v.Version)
			conditions = append(conditions, clientv3.Compare(clientv3.CreateRevision(key), "=", 0))
			ops = append(ops, clientv3.OpPut(key, string(text)))
		}
		if old := last - KeepVersions; old > 0 {
			// Below the oldest that stays, all of them: also what a change of KeepVersions left.
			ops = append(ops, clientv3.OpDelete(s.versionKey(c.Key, 0), clientv3.WithRange(s.versionKey(c.Key, old+1))))
		}
		w.Versions, w.Before = append(w.Versions, add[len(add)-1]), append(w.Before, old.Now)
	}
	if len(w.Versions) == 0 {
		return nil, false, ErrNothing
	}
	if !slices.Equal(removed, now.removed) {
		mark, err := json.Marshal(removals{removed[max(0, len(removed)-keepRemoved):]})
		if err != nil {
			return nil, false, err
		}
		ops = append(ops, clientv3.OpPut(s.prefix+removedKey, string(mark)))
	}
	tctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	r, err := s.client.Raw().Txn(tctx).If(conditions...).Then(ops...).Commit()
	if err != nil {
		return nil, false, fmt.Errorf("write to %q: %w", s.prefix, err)
	}
	w.Revision = r.Header.Revision
	return w, r.Succeeded, nil
}

// versionKey sorts by number.
func (s *Store) versionKey(key string, version int) string {
	return fmt.Sprintf("%s%s/%010d", s.history, key, version)
}

// pages reads prefix at rev, or now if that is 0; then it sets rev.
func (s *Store) pages(ctx context.Context, prefix string, rev *int64, each func(*mvccpb.KeyValue)) error {
	return etcd.Pages(ctx, s.client, prefix, *rev, func(r *clientv3.GetResponse) error {
		*rev = cmp.Or(*rev, r.Header.Revision)
		for _, kv := range r.Kvs {
			each(kv)
		}
		return nil
	})
}
