package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent/config"
)

// staticFlag is what errors call a configuration that came from the command line.
const staticFlag = "--static"

// staticService is an entry of services:.
type staticService struct {
	Name     string   `json:"name"`
	Backends []string `json:"backends"`
	Listen   []string `json:"listen,omitempty"`
}

// staticFlags are the services of "run --static": for a laptop or a CI job, where nobody wants a file, root or /run/lbagent.
type staticFlags struct{ services []*staticService }

func (f *staticFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var(flagFunc{"NAME=ADDRESS,...", f.static}, "static", "instead of a file: a service with its backends; repeatable")
	flags.Var(flagFunc{"[NAME=]PORT", f.listen}, "listen", "a listener of it; without NAME, of the last --static")
}

// flagFunc is a flag that calls a func each time it is given.
type flagFunc struct {
	what string
	set  func(string) error
}

func (f flagFunc) String() string     { return "" }
func (f flagFunc) Type() string       { return f.what }
func (f flagFunc) Set(s string) error { return f.set(s) }

// static takes NAME=ADDRESS,...; what an address may be is the configuration's to say.
func (f *staticFlags) static(arg string) error {
	name, addrs, ok := strings.Cut(arg, "=")
	if !ok || name == "" || addrs == "" {
		return errors.New("NAME=ADDRESS,... is allowed, such as user=127.0.0.1:8080,127.0.0.1:8081")
	}
	f.services = append(f.services, &staticService{Name: name, Backends: strings.Split(addrs, ",")})
	return nil
}

// listen takes [NAME=]LISTENER, where a listener is what services[].listen takes. A path may have a = in it.
func (f *staticFlags) listen(arg string) error {
	name, listener, named := strings.Cut(arg, "=")
	if !named || strings.HasPrefix(arg, "unix:") {
		if len(f.services) == 0 {
			return errors.New("no --static NAME=ADDRESS stands before it; --listen NAME=PORT says whose it is")
		}
		last := f.services[len(f.services)-1]
		last.Listen = append(last.Listen, arg)
		return nil
	}
	for _, s := range f.services {
		if s.Name == name {
			s.Listen = append(s.Listen, listener)
			return nil
		}
	}
	return fmt.Errorf("no --static %s=ADDRESS stands before it", name)
}

// places are where an agent without a file keeps its things.
type places struct{ socket, adminSocket, stateDir string }

// config is the services as a configuration. It has no page on a port: two such agents on one host, or one beside a packaged one, are no mistake.
func (f *staticFlags) config(p places) (*config.Config, error) {
	text, err := json.Marshal(map[string]any{
		"api":       map[string]string{"socket": p.socket, "admin_socket": p.adminSocket},
		"admin":     map[string]string{"listen": ""},
		"state_dir": p.stateDir,
		"services":  f.services,
	})
	if err != nil {
		return nil, fmt.Errorf("write %s as a configuration: %w", staticFlag, err)
	}
	// JSON is YAML; nothing of it is a ${VARIABLE}, which the shell has replaced already.
	c, err := config.Parse(staticFlag, []byte(strings.ReplaceAll(string(text), "$", "$$")))
	if all, ok := errors.AsType[*config.Errors](err); ok {
		for i := range all.List {
			all.List[i].Line = 0 // there is only one
		}
	}
	return c, err
}

// staticPlaces says where the sockets and the state of an agent without a file are: where flags or variables say, else in a folder of this user's. remove
// takes the state away, which is of no use to the next.
func (a *app) staticPlaces(chosen func(flag string) bool) (p places, remove func(), err error) {
	if chosen("socket") || a.getenv("LBAGENT_SOCKET") != "" {
		if p.socket, err = filepath.Abs(a.socket); err != nil {
			return p, nil, fmt.Errorf("find --socket: %w", err)
		}
	} else {
		dir, err := userDir(a.getenv("XDG_RUNTIME_DIR"))
		if err != nil {
			return p, nil, err
		}
		p.socket = filepath.Join(dir, "lbagent.sock")
	}
	p.adminSocket = filepath.Join(filepath.Dir(p.socket), "admin.sock")
	if chosen("admin-socket") || a.getenv("LBAGENT_ADMIN_SOCKET") != "" {
		if p.adminSocket, err = filepath.Abs(a.adminSocket); err != nil {
			return p, nil, fmt.Errorf("find --admin-socket: %w", err)
		}
	}
	if p.stateDir, err = os.MkdirTemp("", "lbagent-state-"); err != nil {
		return p, nil, fmt.Errorf("make a folder for the state: %w", err)
	}
	return p, func() { _ = os.RemoveAll(p.stateDir) }, nil
}

// userDir is a folder that only this user can write to: in runtimeDir, which a login makes (and su leaves behind without making it), or in the one for
// temporary files, where anybody could have made it before.
func userDir(runtimeDir string) (string, error) {
	dir, made := filepath.Join(runtimeDir, "lbagent"), fs.ErrNotExist
	if filepath.IsAbs(runtimeDir) {
		made = os.Mkdir(dir, 0o700)
	}
	if made != nil && !errors.Is(made, fs.ErrExist) {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("lbagent-%d", os.Getuid()))
		made = os.Mkdir(dir, 0o700)
	}
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return "", fmt.Errorf("make a folder for the sockets (--socket PATH names another): %w", made)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("look at the sockets' folder: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || st.Uid != uint32(os.Getuid()) || info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("%s is not a folder that only you can write to; remove it, or name another socket by --socket PATH", dir)
	}
	return dir, nil
}

// exports is what a shell has to be told for the other verbs to find p.
func (p places) exports() string {
	return fmt.Sprintf("export LBAGENT_SOCKET=%s LBAGENT_ADMIN_SOCKET=%s", shellWord(p.socket), shellWord(p.adminSocket))
}

// shellWord quotes s for a shell if it has to.
func shellWord(s string) string {
	plain := !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("/._-:+@%", r))
	})
	if plain {
		return cmp.Or(s, "''")
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
