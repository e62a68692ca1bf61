package table

import "time"

const (
	voiceBurst = 20 // events of one kind that a service may make at once ...
	voiceRate  = 2  // ... and in a second after that
)

// voice keeps one service that flaps, or whose list changes a hundred times a second, from drowning all others in events and log lines: what is too much is
// counted, and told as a number.
type voice struct {
	tokens float64
	at     time.Time
	untold int
}

// may reports whether this may be told by itself; if not, it is counted.
func (v *voice) may(now time.Time) bool {
	if v.untold == 0 && v.take(now) {
		return true
	}
	v.untold++
	return false
}

// rest is the number of what was not told, if that may be told now.
func (v *voice) rest(now time.Time) int {
	if v.untold == 0 || !v.take(now) {
		return 0
	}
	n := v.untold
	v.untold = 0
	return n
}

func (v *voice) take(now time.Time) bool {
	if v.at.IsZero() {
		v.tokens = voiceBurst
	} else if since := now.Sub(v.at); since > 0 {
		v.tokens = min(voiceBurst, v.tokens+since.Seconds()*voiceRate)
	}
	v.at = now
	if v.tokens < 1 {
		return false
	}
	v.tokens--
	return true
}
