package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// parseStatic reads flags as "run" does.
func parseStatic(args ...string) (*staticFlags, error) {
	f := &staticFlags{}
	cmd := (&app{stdout: &output{}, getenv: func(string) string { return "" }}).runVerb()
	cmd.ResetFlags()
	f.add(cmd)
	return f, cmd.ParseFlags(args)
}

func TestStaticFlags(t *testing.T) {
	p := places{"/x/a.sock", "/x/b.sock", "/x/state"}
	for _, tt := range []struct{ args, want string }{
		{"--static user=127.0.0.1:8080", "user [127.0.0.1:8080] []"},
		{"--static user=127.0.0.1:8080,127.0.0.1:8081 --listen 20001", "user [127.0.0.1:8080 127.0.0.1:8081] [127.0.0.1:20001 [::1]:20001]"},
		{
			"--static b=10.0.0.1:1 --listen 20001 --static a=10.0.0.2:1 --listen 20002 --listen b=127.0.0.1:20003",
			"a [10.0.0.2:1] [127.0.0.1:20002 [::1]:20002]; b [10.0.0.1:1] [127.0.0.1:20001 [::1]:20001 127.0.0.1:20003]",
		},
		{"--static a=10.0.0.2:1 --listen unix:/x/y=z.sock", "a [10.0.0.2:1] [unix:/x/y=z.sock]"},
		{"--static a=10.0.0.2:1 --listen unix:/x/${HOME}.sock", "a [10.0.0.2:1] [unix:/x/${HOME}.sock]"}, // the shell's, not the agent's
		{"--static user", "NAME=ADDRESS,... is allowed"},
		{"--static =10.0.0.1:1", "NAME=ADDRESS,... is allowed"},
		{"--static user=", "NAME=ADDRESS,... is allowed"},
		{"--listen 20001 --static user=10.0.0.1:1", "no --static NAME=ADDRESS stands before it"},
		{"--static user=10.0.0.1:1 --listen usr=1", "no --static usr=ADDRESS stands before it"},
		{"--static user=localhost:80", `--static: services[user].backends[0]: "localhost:80" is a host name`},
		{"--static user=10.0.0.1:1, ", "services[user].backends[1]"},
		{"--static user=10.0.0.1:1 --listen 70000", "services[user].listen[0]"},
		{"--static user=127.0.0.1:20001 --listen 20001", "is a listener of this agent"},
		{"--static a=10.0.0.1:1 --listen 20001 --static b=10.0.0.1:1 --listen 20001", "is used by service"},
		{"--static a=10.0.0.1:1 --static a=10.0.0.1:2", "services[a]"},
	} {
		f, err := parseStatic(strings.Split(tt.args, " ")...)
		got := ""
		if err == nil {
			c, configErr := f.config(p)
			if err = configErr; err == nil {
				if c.API.Socket != p.socket || c.API.AdminSocket != p.adminSocket || c.StateDir != p.stateDir || c.AdminListen != "" || c.Etcd != nil {
					t.Errorf("%s: %+v", tt.args, c)
				}
				for i, s := range c.Services {
					if i > 0 {
						got += "; "
					}
					var backends, listen []string
					for _, b := range s.Backends {
						backends = append(backends, b.Addr.String())
					}
					for _, l := range s.Listen {
						listen = append(listen, l.String())
					}
					got += s.Name + " [" + strings.Join(backends, " ") + "] [" + strings.Join(listen, " ") + "]"
				}
			}
		}
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != tt.want || err != nil && !strings.Contains(got, tt.want) {
			t.Errorf("%s:\n  %s\nwant\n  %s", tt.args, got, tt.want)
		}
	}
}

// A folder in /tmp that somebody else made, or may write to, isn't used: who owns it could replace the socket.
func TestUserDir(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	runtime := t.TempDir()
	got, err := userDir(runtime)
	if want := filepath.Join(runtime, "lbagent"); got != want || err != nil {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	fallback, err := userDir(filepath.Join(runtime, "nosuch"))
	if err != nil || filepath.Dir(fallback) != temp {
		t.Errorf("without the login's folder: %q, %v", fallback, err)
	}
	for _, dir := range []string{runtime + "/lbagent", fallback} {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
	if again, err := userDir(""); again != fallback || err != nil {
		t.Errorf("the second time: %q, %v", again, err)
	}
	if err := os.Chmod(fallback, 0o777); err != nil {
		t.Fatal(err)
	}
	if dir, err := userDir(""); err == nil {
		t.Errorf("%s, which everybody may write to, is used", dir)
	}
	if err := os.Remove(fallback); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(runtime, fallback); err != nil {
		t.Fatal(err)
	}
	if dir, err := userDir(""); err == nil {
		t.Errorf("%s, a link, is used", dir)
	}
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{"/run/user/1000/lbagent.sock": "/run/user/1000/lbagent.sock", "": "''", "/a b/it's": `'/a b/it'\''s'`, "$x": "'$x'"} {
		if got := shellWord(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
