package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// account is as whom the agent runs, or would.
type account struct {
	name   string
	uid    uint32
	groups []uint32
}

// runsAs is the running agent's account, else the packaged one if this host has it, else the caller's.
func (d *doctor) runsAs() account {
	u, err := user.Lookup("lbagent")
	if pid := d.agentPID(); pid > 0 {
		if info, statErr := os.Stat(filepath.Join(d.proc, strconv.Itoa(pid))); statErr == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				u, err = user.LookupId(strconv.FormatUint(uint64(st.Uid), 10))
				if err != nil {
					return account{fmt.Sprintf("uid %d", st.Uid), st.Uid, []uint32{st.Gid}}
				}
			}
		}
	}
	if err != nil {
		if u, err = user.Current(); err != nil {
			return account{fmt.Sprintf("uid %d", os.Getuid()), uint32(os.Getuid()), []uint32{uint32(os.Getgid())}}
		}
	}
	who := account{name: u.Username}
	who.uid = number32(u.Uid)
	ids, _ := u.GroupIds()
	for _, id := range append(ids, u.Gid) {
		who.groups = append(who.groups, number32(id))
	}
	return who
}

func number32(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32) // of the account database
	return uint32(n)
}

// may says whether the account has the permissions want (4 read, 2 write, 1 enter) by the mode.
func (who account) may(info fs.FileInfo, want fs.FileMode) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || who.uid == 0 {
		return true
	}
	mode := info.Mode().Perm()
	switch {
	case st.Uid == who.uid:
		mode >>= 6
	case slices.Contains(who.groups, st.Gid):
		mode >>= 3
	}
	return mode&want == want
}

// trouble says why the account can't do want with path; "" if it can, or if this user may not know.
func (who account) trouble(path string, want fs.FileMode) string {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && !who.may(info, 1) {
			return fmt.Sprintf("%s may not enter %s", who.name, dir)
		}
		if dir == "/" || dir == "." {
			break
		}
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return ""
	case err != nil:
		return oneLine(err.Error())
	case !who.may(info, want):
		verb := "read"
		if want&2 != 0 {
			verb = "write to"
		}
		return fmt.Sprintf("%s may not %s %s", who.name, verb, path)
	}
	return ""
}

// checkState looks at where the agent keeps what outlives it, and at the spool (1.8).
func (d *doctor) checkState() {
	const check = "state"
	who, dir := d.runsAs(), d.c.StateDir
	mend := fmt.Sprintf("chown -R %s %s && chmod 750 %s", who.name, dir, dir)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if d.agent == nil {
			d.ok(check, "%s is not there yet; the agent makes it", dir)
			return
		}
		d.bad(check, dir+" does not exist: lists and mutes are kept in memory only", fmt.Sprintf("install -d -o %s -m 750 %s", who.name, dir))
		return
	}
	spool := filepath.Join(dir, "lists")
	for _, path := range []string{dir, spool} {
		if _, err := os.Stat(path); path == spool && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if what := who.trouble(path, 3); what != "" {
			d.bad(check, what+": a restart while etcd is down would begin with old lists or none", mend)
			return
		}
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err == nil {
		switch {
		case disk.Flags&unix.ST_RDONLY != 0:
			d.bad(check, dir+" is on a file system that can only be read", "mount it writable, or write another state_dir")
			return
		case disk.Bavail == 0 || disk.Files > 0 && disk.Ffree == 0:
			d.bad(check, "the disk of "+dir+" is full", "make room")
			return
		}
	}
	d.ok(check, "%s is writable for %s; %s", dir, who.name, spoolWords(spool, d.now))
}

// spoolWords says how old the newest list on disk is; it is written when something changes, so an old one is no fault.
func spoolWords(dir string, now time.Time) string {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrPermission) {
		return "what is in the spool is not for this user to see"
	}
	if err != nil || len(entries) == 0 {
		return "no list in the spool"
	}
	var newest time.Time
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	return fmt.Sprintf("the newest list in the spool is of %s ago", short(now.Sub(newest)))
}

// checkSecrets looks at the files that etcd: names.
func (d *doctor) checkSecrets() {
	const check = "secrets"
	if d.c.Etcd == nil {
		return
	}
	who, before, n := d.runsAs(), len(d.findings), 0
	for _, f := range []struct {
		key, path string
		secret    bool
	}{
		{"etcd.password_file", d.c.Etcd.PasswordFile, true}, {"etcd.tls.key_file", d.c.Etcd.TLS.KeyFile, true},
		{"etcd.tls.cert_file", d.c.Etcd.TLS.CertFile, false}, {"etcd.tls.ca_file", d.c.Etcd.TLS.CAFile, false},
	} {
		if f.path == "" {
			continue
		}
		n++
		if what := who.trouble(f.path, 4); what != "" {
			d.bad(check, f.key+": "+what, fmt.Sprintf("chown root:%s %s && chmod 640 %s, in a directory that it may enter", who.name, f.path, f.path))
			continue
		}
		if info, err := os.Stat(f.path); err == nil && f.secret && info.Mode().Perm()&0o004 != 0 {
			d.warn(check, fmt.Sprintf("%s: every user of this host may read %s", f.key, f.path), "chmod o-r "+f.path)
		}
	}
	if n > 0 {
		d.well(before, check, "%s can be read by %s", plural(n, "file"), who.name)
	}
}

// checkSockets looks at the two doors of the API.
func (d *doctor) checkSockets() {
	const check = "sockets"
	before := len(d.findings)
	for _, s := range []struct {
		key, path string
		mode      fs.FileMode
	}{{"api.socket", d.c.API.Socket, 0o666}, {"api.admin_socket", d.c.API.AdminSocket, 0o660}} {
		info, err := os.Lstat(s.path)
		switch {
		case errors.Is(err, fs.ErrPermission):
			continue // behind a directory that this user may not enter, as it should be for the admin socket
		case err != nil && d.agent == nil:
			continue // as it is without an agent
		case err != nil:
			d.bad(check, fmt.Sprintf("%s: %s is not there, although an agent runs", s.key, s.path), "systemctl restart lbagent.socket lbagent-admin.socket lbagent")
			continue
		case info.Mode()&fs.ModeSocket == 0:
			d.bad(check, fmt.Sprintf("%s: %s is not a socket", s.key, s.path), "remove it, and start the agent again")
			continue
		}
		if mode := info.Mode().Perm(); mode&^s.mode != 0 {
			d.warn(check, fmt.Sprintf("%s: %s has mode %04o, %04o is enough", s.key, s.path, mode, s.mode), fmt.Sprintf("chmod %04o %s", s.mode, s.path))
		} else if mode != s.mode {
			d.bad(check, fmt.Sprintf("%s: %s has mode %04o: those who should may not use it", s.key, s.path, mode), fmt.Sprintf("chmod %04o %s", s.mode, s.path))
		}
		if dir := filepath.Dir(s.path); s.key == "api.socket" {
			if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 && !strings.HasPrefix(dir, "/run/user/") {
				d.warn(check, fmt.Sprintf("%s: not every user may enter %s", s.key, dir), "chmod 0755 "+dir)
			}
		}
		d.checkListener(s.key, s.path)
	}
	if d.agent != nil {
		d.well(before, check, "%s and %s", d.c.API.Socket, d.c.API.AdminSocket)
	}
}

// checkListener finds a socket that is left over, or somebody else's.
func (d *doctor) checkListener(key, path string) {
	pid, err := listenerPID(path)
	switch {
	case errors.Is(err, unix.ECONNREFUSED) && d.agent != nil:
		d.bad("sockets", fmt.Sprintf("%s: nobody listens at %s, although an agent runs", key, path), "systemctl restart lbagent")
	case err != nil || d.agentPID() == 0 || pid == 0 || pid == 1 || pid == d.agentPID(): // 1: systemd made it
	case d.holdsSocket(path): // it was handed over: after an upgrade the kernel still names the process of before
	default:
		d.bad("sockets", fmt.Sprintf("%s: %s belongs to %s (pid %d), not to the agent (pid %d)", key, path, d.comm(pid), pid, d.agentPID()), "stop that program, then start the agent again")
	}
}

// holdsSocket reports whether the agent may have the unix socket at path: it has it open, or this user can't see who has.
func (d *doctor) holdsSocket(path string) bool {
	text, err := os.ReadFile(filepath.Join(d.proc, "net/unix"))
	if err != nil {
		return true
	}
	var sockets []listener
	for line := range strings.Lines(string(text)) { // Num RefCount Protocol Flags Type St Inode Path
		if f := strings.Fields(line); len(f) == 8 && f[7] == path {
			sockets = append(sockets, listener{inode: f[6]})
		}
	}
	seen := false
	for _, holders := range d.owners(sockets) {
		for _, p := range holders {
			if p.pid == d.agentPID() {
				return true
			}
			seen = true
		}
	}
	return !seen
}

// listenerPID is who called listen() on a unix socket; 0 if that can't be seen from here.
func listenerPID(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return 0, err
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}
