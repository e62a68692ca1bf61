package registrar

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// 5.5: no address that means another host, or none, to others.
func TestCheck(t *testing.T) {
	for address, problem := range map[string]string{
		":8080": "", "10.0.0.1:80": "", "[2001:db8::1]:80": "", "[::ffff:10.0.0.1]:80": "",
		"127.0.0.1:80": "loopback", "[::1]:80": "loopback", "[::ffff:127.0.0.1]:80": "loopback", "0.0.0.0:80": "no host", "[::]:80": "no host",
		"169.254.1.1:80": "link-local", "[fe80::1%eth0]:80": "link-local", "224.0.0.1:80": "many hosts", "255.255.255.255:80": "many hosts",
		"": "host:port", ":": "port", ":0": "port", ":70000": "port", "10.0.0.1": "host:port", "web-1:80": "host:port", "10.0.0.1:0": "host:port",
	} {
		err := (&Registration{Service: "user", Address: address}).Check()
		if (err == nil) != (problem == "") || err != nil && !strings.Contains(err.Error(), problem) {
			t.Errorf("%q: %v, want %q", address, err, problem)
		}
	}
	many := make(map[string]string)
	for i := range maxMetadata + 1 {
		many[strings.Repeat("x", i+1)] = ""
	}
	for name, r := range map[string]Registration{
		"no service":   {Address: ":1"},
		"format":       {Service: "s", Address: ":1", Format: "xml"},
		"entries":      {Service: "s", Address: ":1", Metadata: many},
		"bytes":        {Service: "s", Address: ":1", Metadata: map[string]string{"a": strings.Repeat("x", maxMetadataBytes)}},
		"reserved":     {Service: "s", Address: ":1", Metadata: map[string]string{"Weight": "1"}},
		"no UTF-8":     {Service: "s", Address: ":1", Metadata: map[string]string{"a": "\xff"}},
		"probe type":   {Service: "s", Address: ":1", Probe: Probe{Type: "ping"}},
		"interval":     {Service: "s", Address: ":1", Probe: Probe{Interval: time.Millisecond}},
		"probe path":   {Service: "s", Address: ":1", Probe: Probe{Type: "http", Path: "/\r\nX: y"}},
		"probe status": {Service: "s", Address: ":1", Probe: Probe{Type: "http", StatusMin: 300, StatusMax: 200}},
	} {
		if r.Check() == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

func TestOwnAddress(t *testing.T) {
	a, err := ownAddress(t.Context(), []string{"http://127.0.0.1:2379", "http://[::1]:2379"})
	if err == nil || !strings.Contains(err.Error(), "loopback") || !strings.Contains(err.Error(), "write address: HOST:PORT") {
		t.Errorf("%v %v", a, err)
	}
	if _, err := ownAddress(t.Context(), nil); err == nil {
		t.Error("an address without etcd")
	}
}

func TestCPU(t *testing.T) {
	before, err := parseCPU([]byte("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3 4\n"))
	if err != nil {
		t.Fatal(err)
	}
	after, err := parseCPU([]byte("cpu  160 0 60 820 60 0 0 0 60 0\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := after.since(before); got != 70 {
		t.Errorf("load %d, want 70", got)
	}
	if got := before.since(after); got != 0 {
		t.Errorf("backwards: %d", got)
	}
	for _, bad := range []string{"", "cpu", "cpu0 1 2 3 4 5", "cpu 1 2 3 x 5"} {
		if _, err := parseCPU([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if _, err := readCPU(); err != nil {
		t.Error(err)
	}
}

// A file that is torn or foreign is set aside, and the agent begins without.
func TestBadFile(t *testing.T) {
	whole, err := encodeState(&state{Leases: []int64{7}, Keys: []keyFile{{Key: "k"}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty": nil, "torn": whole[:len(whole)-5], "foreign": []byte("hello\n"), "a bit": bytes.Replace(whole, []byte(`"k"`), []byte(`"l"`), 1),
	} {
		path := filepath.Join(t.TempDir(), stateName)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := loadState(path); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
		if _, err := os.Stat(path + ".bad"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A newer release may know more; a torn file is never taken for another.
func FuzzState(f *testing.F) {
	for _, s := range []state{{}, {Leases: []int64{1, 2}, Cluster: 1 << 63, Registrations: []regFile{{Registration: web, UID: 3, Hold: true}}, Drains: []drain{{"user", true}}}} {
		data, err := encodeState(&s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(fileMagic + " 0000000000000000\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeState(data)
		if err != nil {
			return
		}
		again, err := encodeState(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeState(again); err != nil {
			t.Fatal(err)
		}
	})
}

// Leases that were read from the file are written down by whoever registers, at any time; the keeper, which puts new ones before them in place, has its own.
func TestKeeperHasItsOwnLeases(t *testing.T) {
	read := append(make([]int64, 0, 4), 1, 2) // as JSON is decoded: with room for more
	r := &Registrar{keep: state{Leases: read}}
	k := r.newKeeper()
	k.leases = slices.Insert(k.leases, 0, 3)
	if !slices.Equal(r.keep.Leases, []int64{1, 2}) {
		t.Errorf("what is written down became %v", r.keep.Leases)
	}
}
