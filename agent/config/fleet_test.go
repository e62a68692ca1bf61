package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const fleetHost = withEtcd + `fleet: {prefix: lbagent/config/}
node: {name: web-17, zone: eu-1a, region: eu-1}
`

// item is an item whose text is in force already, as most are.
func item(key, text string) Item { return Item{Key: key, File: "etcd:" + key, Now: text, Good: text} }

// changed is an item that was good before.
func changed(key, now, good string) Item {
	return Item{Key: key, File: "etcd:" + key, Now: now, Good: good}
}

// tellFates is what became of items, a line each.
func tellFates(items []Item, fates []Fate) string {
	var b strings.Builder
	for i, f := range fates {
		fmt.Fprintf(&b, "%s %s", items[i].Key, f.Place)
		if f.By != "" {
			fmt.Fprintf(&b, " by %s", f.By)
		}
		switch f.Used {
		case "", items[i].Now:
		default:
			b.WriteString(", the last good form")
		}
		if f.Problem != nil {
			fmt.Fprintf(&b, ": %v", f.Problem)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// TestWithFleet: one bad item leaves the others alone, keeps its last good form, and gives way to what was there before (DESIGN.md 5, Fleet).
func TestWithFleet(t *testing.T) {
	const (
		user  = "{name: user, prefix: s/user/, listen: [7001]}"
		mail  = "{name: mail, prefix: s/mail/, listen: [7002]}"
		local = "services: [{name: db, prefix: s/db/, listen: [7009]}]\n"
	)
	for _, c := range []struct {
		name  string
		files string
		items []Item
		want  string
		have  string // services
	}{
		{"all well", local, []Item{item("mail", mail), item("user", user)}, "mail in force\nuser in force\n", "db mail user"},
		{"the files win", local, []Item{item("db", "{name: db, prefix: x/, listen: [7001]}"), item("user", user)},
			"db overridden by lbagent.yaml:4\nuser in force\n", "db user"},
		{"a mistake", "", []Item{item("mail", mail), changed("user", "{name: user, prefix: s/user/, listne: [7001]}", user)},
			"mail in force\nuser in force, the last good form: etcd:user:1: services[user].listne: unknown key (did you mean \"listen\"?)", "mail user"},
		{"a mistake from the start", "", []Item{changed("user", "{name: user", "")}, "user bad: etcd:user", ""},
		{"the name of another", "", []Item{changed("user", "{name: usre, prefix: a/}", "")}, `user bad: etcd:user:1: services[usre].name: "usre" is not the service that the key is of; write name: user`, ""},
		{"no service at all", "", []Item{changed("user", "# later\n", ""), changed("mail", "[]", ""), changed("a/b/c", "{}", "")},
			"user bad: etcd:user:1: the item is no service; write one entry", ""},
		{"a variable", "", []Item{changed("user", "{name: user, prefix: \"${WORD}/\"}", "")}, "an item of the fleet has no variables", ""},
		{"too long", "", []Item{changed("user", user+"#"+strings.Repeat("x", MaxItem), "")}, "at most 64 KiB are allowed", ""},
		{"a port of the files", local, []Item{changed("user", "{name: user, prefix: s/user/, listen: [7009]}", user), changed("mail", mail, "")},
			"user in force, the last good form: etcd:user:1: services[user].listen: 127.0.0.1:7009 is used by service \"db\" at lbagent.yaml:4 already; write another port\nmail in force\n", "db mail user"},
		{"a port of the agent", "", []Item{changed("user", "{name: user, prefix: s/user/, listen: [9901]}", "")}, "is used by admin.listen (by default) already", ""},
		{"a prefix of the files, from without", local, []Item{changed("all", "{name: all, prefix: s/}", ""), changed("deep", "{name: deep, prefix: s/db/x/}", "")},
			"all bad: etcd:all:1: services[all].prefix: \"s/\" holds the prefix \"s/db/\" of service \"db\" at lbagent.yaml:4; write overlap: true if that is meant\n" +
				"deep bad: etcd:deep:1: services[deep].prefix: \"s/db/x/\" lies inside the prefix \"s/db/\"", "db"},
		{"the backend of a file", "services: [{name: db, backends: [\"127.0.0.1:7001\"]}]\n", []Item{changed("user", user, "")},
			"user bad: etcd:user:1: services[user].listen: 127.0.0.1:7001 is a backend of service \"db\" at lbagent.yaml:4: a call would go round for ever; write another port", "db"},
		{"the one that was there stays, whatever the order", "", []Item{changed("mail", "{name: mail, prefix: s/mail/, listen: [7001]}", ""), item("user", user)},
			"mail bad: etcd:mail:1: services[mail].listen: 127.0.0.1:7001 is used by service \"user\" at etcd:user:1 already; write another port\nuser in force\n", "user"},
		{"two that changed places", "", []Item{changed("mail", strings.Replace(mail, "7002", "7001", 1), mail), changed("user", strings.Replace(user, "7001", "7002", 1), user)},
			"mail in force\nuser in force\n", "mail user"},
		{"who falls back takes its place again", "", []Item{
			changed("user", "{name: user, prefix: s/user/, listen: [7003]}", user), // another has 7003
			item("third", "{name: third, prefix: s/third/, listen: [7003]}"),
			changed("fourth", "{name: fourth, prefix: s/fourth/, listen: [7001]}", ""), // user seemed to leave it
		}, "user in force, the last good form: etcd:user:1: services[user].listen: 127.0.0.1:7003 is used by service \"third\" at etcd:third:1 already; write another port\n" +
			"third in force\nfourth bad: etcd:fourth:1: services[fourth].listen: 127.0.0.1:7001 is used by service \"user\"", "third user"},
		{"who is refused takes nothing from others", "", []Item{
			item("user", user),
			changed("greedy", "{name: greedy, prefix: s/user/, listen: [7005]}", ""),
			changed("other", "{name: other, prefix: s/user/deeper/, listen: [7005], overlap: true}", ""),
		}, "user in force\ngreedy bad: etcd:greedy:1: services[greedy].prefix: \"s/user/\" is the prefix \"s/user/\" of service \"user\"", "other user"},
		{"the fleet's own keys", "", []Item{changed("me", "{name: me, prefix: lbagent/}", "")}, `"lbagent/" and fleet.prefix, "lbagent/config/", hold each other's keys`, ""},
		{"defaults of the host hold", "defaults: {policy: round_robin, overlap: true}\n", []Item{item("user", user), changed("twin", "{name: twin, prefix: s/user/}", "")},
			"user in force\ntwin in force\n", "twin user"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := mustParse(t, fleetHost+c.files)
			before := cfg.Services
			next, fates := cfg.WithFleet(c.items)
			if got := tellFates(c.items, fates); !strings.Contains(got, c.want) {
				t.Errorf("got:\n%swant:\n%s", got, c.want)
			}
			var have []string
			for _, s := range next.Services {
				have = append(have, s.Name)
				if fromFile := s.Name == "db"; fromFile == (s.Item != "") {
					t.Errorf("%s is of item %q", s.Name, s.Item)
				}
			}
			if got := strings.Join(have, " "); got != c.have {
				t.Errorf("services %q, want %q", got, c.have)
			}
			// The Config itself isn't touched, and says the same again.
			again, fates2 := cfg.WithFleet(c.items)
			if len(cfg.Services) != len(before) || tellFates(c.items, fates) != tellFates(c.items, fates2) || !Compare(next, again).None() {
				t.Error("the second time is another")
			}
		})
	}
}

// TestCanary: an item with only: is in force on the hosts that it names, in place of the item without.
func TestCanary(t *testing.T) {
	items := []Item{
		item("user", "{name: user, prefix: s/user/, listen: [7001]}"),
		item("user/new", "{name: user, prefix: s/user2/, listen: [7001], only: {zone: [eu-1a, eu-1b], region: eu-1}}"),
		item("user/one", "{name: user, prefix: s/user3/, listen: [7001], only: {node: web-17}}"),
		item("lone", "{name: lone, prefix: s/lone/, only: {zone: us-1}}"),
	}
	for _, c := range []struct{ node, want, prefix string }{
		{"{name: web-1, zone: us-2, region: us}", "user in force\nuser/new elsewhere\nuser/one elsewhere\nlone elsewhere\n", "s/user/"},
		{"{name: web-1, zone: us-1, region: us}", "user in force\nuser/new elsewhere\nuser/one elsewhere\nlone in force\n", "s/user/"},
		{"{name: web-1, zone: eu-1b, region: eu-1}", "user hidden by user/new\nuser/new in force\nuser/one elsewhere\nlone elsewhere\n", "s/user2/"},
		{"{name: web-1, zone: eu-1b, region: eu-2}", "user in force\nuser/new elsewhere\nuser/one elsewhere\nlone elsewhere\n", "s/user/"},
		{"{name: web-17, zone: eu-1a, region: eu-1}", "user hidden by user/new\nuser/new in force\nuser/one hidden by user/new\nlone elsewhere\n", "s/user2/"},
		{"{name: web-17}", "user hidden by user/one\nuser/new elsewhere\nuser/one in force\nlone elsewhere\n", "s/user3/"},
	} {
		for _, order := range [][]int{{0, 1, 2, 3}, {3, 2, 1, 0}} {
			var in []Item
			for _, i := range order {
				in = append(in, items[i])
			}
			cfg, fates := mustParse(t, withEtcd+"fleet: {prefix: f/}\nnode: "+c.node+"\n").WithFleet(in)
			if order[0] != 0 {
				slices.Reverse(in)
				slices.Reverse(fates)
			}
			if got := tellFates(in, fates); got != c.want {
				t.Errorf("%s: got\n%swant\n%s", c.node, got, c.want)
			}
			if got := find(t, cfg, "user").Prefix; got != c.prefix {
				t.Errorf("%s: prefix %s, want %s", c.node, got, c.prefix)
			}
		}
	}
	cfg := mustParse(t, fleetHost)
	bad := []Item{
		changed("user/new", "{name: user, prefix: s/user/}", ""), changed("user/a", "{name: user, prefix: s/user/, only: {}}", ""),
		changed("user/b", "{name: user, prefix: s/user/, only: {zone: []}}", ""), changed("user/c", "{name: user, prefix: s/user/, only: {rack: 1}}", ""),
		changed("user/1", "{name: user, prefix: s/user/, only: {zone: a}}", ""),
	}
	_, fates := cfg.WithFleet(bad)
	for i, want := range []string{"the variant has no only:", "names no host", "names no host", "unknown key; allowed: node, region, zone", "is no item: a variant's name"} {
		if f := fates[i]; f.Place != Nowhere || f.Problem == nil || !strings.Contains(f.Problem.Error(), want) {
			t.Errorf("%s: %s %v, want %q", bad[i].Key, f.Place, f.Problem, want)
		}
	}
	// A variant that can't be used leaves the plain item in force.
	_, fates = cfg.WithFleet([]Item{items[0], changed("user/new", "{name: user, prefix: s/user/, listen: [9901], only: {zone: eu-1a}}", "")})
	if fates[0].Place != Here || fates[1].Place != Nowhere {
		t.Errorf("a bad variant: %s, %s", fates[0].Place, fates[1].Place)
	}
}

// TestCheckFleet: what can't be on one host together is found without that host.
func TestCheckFleet(t *testing.T) {
	const user = "{name: user, prefix: s/user/, listen: [7001]}"
	cfg := mustParse(t, fleetHost+"services: [{name: db, prefix: s/x/, listen: [7777]}]\n")
	for _, c := range []struct{ name, key, text, want string }{
		{"another port", "mail", "{name: mail, prefix: s/mail/, listen: [7002]}", ""},
		{"the same port", "mail", "{name: mail, prefix: s/mail/, listen: [7001]}", `127.0.0.1:7001 is used by service "user" at etcd:user:1 already`},
		{"the same socket", "mail", "{name: mail, prefix: s/mail/, listen: [\"unix:/run/x.sock\"]}", `unix:/run/x.sock is used by service "sock"`},
		{"the same prefix", "mail", "{name: mail, prefix: s/user/}", `"s/user/" is the prefix`},
		{"a file's port is its host's matter", "mail", "{name: mail, prefix: s/mail/, listen: [7777]}", ""},
		{"a variant may have the port of its service", "user/new", "{name: user, prefix: s/user/, listen: [7001], only: {zone: a}}", ""},
		{"and no other", "user/new", "{name: user, prefix: s/user/, listen: [7003], only: {zone: a}}", `127.0.0.1:7003 is used by service "zoned"`},
		{"unless it is for other hosts", "user/new", "{name: user, prefix: s/user/, listen: [7003], only: {zone: c}}", ""},
		{"hosts that may be the same", "user/new", "{name: user, prefix: s/user/, listen: [7003], only: {node: x}}", `127.0.0.1:7003 is used by service "zoned"`},
	} {
		items := []Item{
			item("user", user), item("zoned", "{name: zoned, prefix: s/zoned/, listen: [7003], only: {zone: [a, b]}}"),
			item("sock", "{name: sock, prefix: s/sock/, listen: [\"unix:/run/x.sock\"]}"),
			changed(c.key, c.text, ""),
		}
		fates := cfg.CheckFleet(items)
		got := ""
		if p := fates[3].Problem; p != nil {
			got = p.Error()
		}
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		for i := range 3 {
			if fates[i].Problem != nil {
				t.Errorf("%s: %s is blamed: %v", c.name, items[i].Key, fates[i].Problem)
			}
		}
	}
}

func TestFleetItems(t *testing.T) {
	const one = "# why\nname: user\nprefix: s/user/ # where\n"
	items, err := FleetItems("f.yaml", []byte(one))
	if err != nil || len(items) != 1 || items[0].Key != "user" || items[0].Now != one {
		t.Errorf("one: %+v, %v", items, err)
	}
	items, err = FleetItems("f.yaml", []byte("services:\n  - name: user # who\n    prefix: a$$/\n  - {name: mail, prefix: s/mail/}\n"))
	if err != nil || len(items) != 2 || items[0].Key != "user" || items[1].Key != "mail" || items[0].Now != "name: user # who\nprefix: a$$/\n" {
		t.Errorf("two: %+v, %v", items, err)
	}
	for text, want := range map[string]string{
		"":                         "there is no service in it",
		"[]":                       "there is no service in it",
		"services: []":             "there is no service in it",
		"services: [{prefix: a/}]": "f.yaml:1: the service has no name",
		"services: 1":              "is no list",
		"etcd: {}\nservices: []":   "f.yaml:1: etcd: unknown key",
		"name: a\n---\nname: b":    "a second document",
		"name: \"${USER}\"":        "has no variables",
		"{":                        "no YAML",
	} {
		if items, err := FleetItems("f.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", text, items, err, want)
		}
	}
}

func TestFleetSection(t *testing.T) {
	for text, want := range map[string]string{
		withEtcd + "fleet: {prefix: f/}\n":                                              "f/",
		"etcd: {endpoints: [\"http://a:1\"], namespace: /prod/}\nfleet: {prefix: f/}\n": "/prod/f/",
		withEtcd + "fleet: {prefix: \"\"}\n":                                            "",
		"fleet: {prefix: \"\"}\n":                                                       "",
		withEtcd + "fleet: off\n":                                                       "",
	} {
		got := ""
		if c := mustParse(t, text); c.Fleet != nil {
			got = c.Fleet.Prefix
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"fleet: {prefix: f/}\n":           "needs etcd:",
		withEtcd + "fleet: {prefix: f}\n": "does not end in /",
		withEtcd + "fleet: {prefix: f/}\nservices: [{name: a, prefix: f/a/}]\n":      `"f/a/" and fleet.prefix, "f/", hold each other's keys`,
		withEtcd + "services: [{name: a, prefix: f/, only: {zone: a}}]\n":            "belongs to the items that fleet: keeps in etcd",
		withEtcd + "defaults: {only: {zone: a}}\n":                                   "belongs to the items that fleet: keeps in etcd",
		withEtcd + "fleet: {prefix: f/}\nservices: [{name: a, prefix: f/}]\n":        "hold each other's keys",
		withEtcd + "fleet: {prefix: f/g/}\nservices: [{name: a, prefix: f/}]\n":      "hold each other's keys",
		withEtcd + "fleet: {prefix: \"f/\", prefixes: [a]}\nservices: [{name: a}]\n": "unknown key",
	} {
		if _, err := parseText(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// FuzzWithFleet: no item panics, and whatever one says, a good one beside it stays in force, unless that is the one that clashes.
func FuzzWithFleet(f *testing.F) {
	f.Add("user", "{name: user, prefix: s/user/, listen: [7001]}")
	f.Add("user/new", "{name: user, backends: [\"127.0.0.1:7001\"], only: {zone: [eu-1a]}}")
	f.Add("x", "name: x\nprefix: services/\n")
	f.Add("x/y/z", "{name: $x}")
	f.Fuzz(func(t *testing.T, key, text string) {
		if len(key)+len(text) > 1<<12 || strings.HasPrefix(key, "mail") {
			return
		}
		cfg := mustParse(t, fleetHost+"services: [{name: db, prefix: s/db/, listen: [7009]}]\n")
		items := []Item{{Key: key, File: "etcd:key", Now: text}, item("mail", "{name: mail, prefix: s/mail/, listen: [7002]}")}
		next, fates := cfg.WithFleet(items)
		if fates[1].Place != Here || fates[1].Problem != nil {
			t.Fatalf("mail: %s %v", fates[1].Place, fates[1].Problem)
		}
		if find(t, next, "db").Item != "" || (fates[0].Place == Nowhere) != (fates[0].Problem != nil) {
			t.Fatalf("%+v", fates[0])
		}
		cfg.CheckFleet(items)
		_, _ = FleetItems("f", []byte(text))
	})
}

// BenchmarkWithFleet is what a change of one item costs a host: all of them are looked at.
func BenchmarkWithFleet(b *testing.B) {
	cfg, err := parseText(fleetHost)
	if err != nil {
		b.Fatal(err)
	}
	var items []Item
	for i := range 1000 {
		items = append(items, item(fmt.Sprint("s", i), fmt.Sprintf("name: s%d\nprefix: s/%d/\nlisten: [%d]\nprobe: {type: http, path: /healthz}\n", i, i, 10000+i)))
	}
	for b.Loop() {
		if next, _ := cfg.WithFleet(items); len(next.Services) != len(items) {
			b.Fatal(len(next.Services))
		}
	}
}
