package accesslog

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// file is what lines go to, opened when it is needed, and anew when it is no longer under its name.
type file struct {
	l      *Log
	f      *os.File
	path   string
	looked time.Time
	torn   bool  // the last write ended within a line
	told   error // what was told to be wrong; nil: nothing is
}

// write appends text, whole lines, and returns how many of them are lost.
func (f *file) write(path string, text []byte) (lost int) {
	err := f.open(path)
	if err == nil && f.torn { // the rest of the line that was cut off is lost
		if _, err = f.f.Write([]byte("\n")); err == nil {
			f.torn = false
		}
	}
	if err == nil {
		var n int
		n, err = f.f.Write(text)
		f.torn = n > 0 && text[n-1] != '\n' || n == 0 && f.torn
		text = text[n:]
	}
	if err != nil {
		lost = bytes.Count(text, []byte("\n"))
		f.close()
	}
	f.tell(err)
	return lost
}

// open opens the file if it isn't, or if its name leads to another one by now: logrotate renames, a person removes.
func (f *file) open(path string) error {
	now := time.Now()
	if f.f != nil && path == f.path && now.Sub(f.looked) < lookEvery {
		return nil
	}
	f.looked = now
	if f.f != nil && path == f.path {
		mine, err := f.f.Stat()
		named, err2 := os.Lstat(path)
		if err == nil && err2 == nil && os.SameFile(mine, named) {
			return nil
		}
	}
	f.close()
	// Not through a link, which could lead anywhere, and no pipe, whose reader could hold up the stop.
	opened, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return err
	}
	info, err := opened.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		opened.Close()
		return err
	}
	f.f, f.path = opened, path
	if size := info.Size(); size > 0 { // a process before may have been cut off within a line
		var last [1]byte
		if r, err := os.Open(path); err == nil {
			_, err = r.ReadAt(last[:], size-1)
			f.torn = err == nil && last[0] != '\n'
			r.Close()
		}
	} else {
		f.torn = false
	}
	return nil
}

func (f *file) close() {
	if f.f != nil {
		f.f.Close()
		f.f = nil
	}
}

// tell says once that the file can't be written, and once that it can again.
func (f *file) tell(err error) {
	f.l.ok.Store(err == nil)
	switch {
	case err != nil && f.told == nil:
		f.l.log.Error("the access log can't be written; calls go on, their lines are lost", "error", err)
		f.l.fail(err)
	case err == nil && f.told != nil:
		f.l.log.Info("the access log is written again", "dropped", f.l.dropped.Load())
		f.l.fail(nil)
	}
	f.told = err
}
