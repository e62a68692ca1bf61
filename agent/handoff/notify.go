// Package handoff carries readiness, and later sockets, between this process, the service manager and the process that follows it.
package handoff

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Notifier tells systemd how the process fares (sd_notify(3)). Outside systemd it does nothing.
type Notifier struct {
	off atomic.Bool // another process is the service's main one
}

// Off ends all notifications: from now on they are another process's.
func (n *Notifier) Off() { n.off.Store(true) }

// On begins them.
func (n *Notifier) On() { n.off.Store(false) }

// Main says that another process is the service's from now on.
func (n *Notifier) Main(pid int) error { return n.notify(fmt.Sprintf("MAINPID=%d", pid)) }

// Ready says that the agent serves; status is one line for `systemctl status`.
func (n *Notifier) Ready(status string) error {
	return n.notify(daemon.SdNotifyReady, "STATUS="+line(status))
}

// Status changes the line that `systemctl status` shows.
func (n *Notifier) Status(status string) error { return n.notify("STATUS=" + line(status)) }

// Stopping says that the agent ends in an orderly way.
func (n *Notifier) Stopping() error {
	return n.notify(daemon.SdNotifyStopping, "STATUS=stopping: running calls get up to 5 s")
}

func (n *Notifier) notify(lines ...string) error {
	if n.off.Load() {
		return nil
	}
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// line keeps a status from ending its assignment early.
func line(s string) string { return strings.ReplaceAll(s, "\n", " ") }

// Alive says that the agent is well; the service manager restarts it if it doesn't hear that often enough.
func (n *Notifier) Alive() error { return n.notify(daemon.SdNotifyWatchdog) }

// Watchdog is how often Alive has to be called at least; 0 if nobody waits for it.
func (n *Notifier) Watchdog() time.Duration {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0
	}
	return d
}
