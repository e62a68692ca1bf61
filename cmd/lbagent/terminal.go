package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// terminal is a terminal that shows whole screens and gives single keys. restore brings back what it was, whatever happened in between.
type terminal struct {
	in, out *os.File
	was     unix.Termios
	restore func()
}

// The sequences of ECMA-48, and of xterm's for the second screen, that top needs. All terminals in use know them.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[0m\x1b[?25h\x1b[?1049l"
	toTop       = "\x1b[H"
	restOfLine  = "\x1b[K"
	restOfAll   = "\x1b[J"
)

// isTerminal reports whether f is one.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// openTerminal takes the terminal over: no echo, no line editing, no signals by keys.
func openTerminal(in, out *os.File) (*terminal, error) {
	was, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read the terminal's settings: %w", err)
	}
	t := &terminal{in: in, out: out, was: *was}
	raw := *was
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("change the terminal's settings: %w", err)
	}
	t.restore = sync.OnceFunc(func() {
		_, _ = io.WriteString(out, leaveScreen)
		_ = unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &t.was)
	})
	if _, err := io.WriteString(out, enterScreen); err != nil {
		t.restore()
		return nil, fmt.Errorf("write to the terminal: %w", err)
	}
	return t, nil
}

// size is what the terminal shows; 80x24 if it doesn't say.
func (t *terminal) size() (columns, rows int) {
	s, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ)
	if err != nil || s.Col == 0 || s.Row == 0 {
		return 80, 24
	}
	return int(s.Col), int(s.Row)
}

// show replaces what is shown, in one write, so that nothing flickers.
func (t *terminal) show(lines []string) error {
	var b bytes.Buffer
	b.WriteString(toTop)
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(line)
		b.WriteString(restOfLine)
	}
	b.WriteString(restOfAll)
	_, err := t.out.Write(b.Bytes())
	return err
}

// key is a key that was pressed.
type key rune

// Keys that are no characters.
const (
	keyUp key = 0x10ffff + 1 + iota
	keyDown
	keyLeft
	keyRight
	keyHome
	keyEnd
	keyPageUp
	keyPageDown
	keyEscape
	keyEnter
	keyBackspace
	keyInterrupt // ^C
)

// keys reads keys until the terminal ends. What is pressed comes in one read: so an escape by itself is told from the beginning of a sequence.
func (t *terminal) keys(ctx context.Context, to chan<- key) {
	buf := make([]byte, 256)
	for {
		n, err := t.in.Read(buf)
		if err != nil {
			return
		}
		for _, k := range parseKeys(buf[:n]) {
			select {
			case to <- k:
			case <-ctx.Done():
				return
			}
		}
	}
}

// parseKeys is what was pressed.
func parseKeys(b []byte) (all []key) {
	for len(b) > 0 {
		k, n := parseKey(b)
		if k != 0 {
			all = append(all, k)
		}
		b = b[n:]
	}
	return all
}

// parseKey is the first key in b, 0 if it means nothing here, and the length of what was sent for it.
func parseKey(b []byte) (key, int) {
	switch b[0] {
	case 3:
		return keyInterrupt, 1
	case '\r', '\n':
		return keyEnter, 1
	case 8, 127:
		return keyBackspace, 1
	case 27:
	default:
		return key(b[0]), 1
	}
	if len(b) < 3 || b[1] != '[' && b[1] != 'O' {
		return keyEscape, 1
	}
	end := 2 // of ESC [ parameters letter
	for end < len(b)-1 && (b[end] < '@' || b[end] > '~') {
		end++
	}
	named := map[string]key{
		"A": keyUp, "B": keyDown, "C": keyRight, "D": keyLeft, "H": keyHome, "F": keyEnd, "1~": keyHome, "7~": keyHome, "4~": keyEnd, "8~": keyEnd,
		"5~": keyPageUp, "6~": keyPageDown,
	}
	return named[string(b[2:end+1])], end + 1
}

// watchSignals tells of a new size, and of signals that end the process.
func watchSignals() (resized, ended chan os.Signal, stop func()) {
	resized, ended = make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	signal.Notify(ended, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	return resized, ended, func() { signal.Stop(resized); signal.Stop(ended) }
}
