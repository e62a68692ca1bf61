package mute

import (
	"fmt"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// toldAtOnce bounds the events of one change: a fleet may mute a thousand backends at once.
const toldAtOnce = 20

// publishLocked hands on which mutes hold at now, if they are others than before, and tells which began and ended. by is who took one back, if that is known.
func (m *Mutes) publishLocked(now time.Time, by string) {
	holds := make(map[shown]service.Mute, len(m.shown))
	for k, one := range m.hosts {
		if now.Before(one.Until) {
			holds[shown{k, false}] = one
		}
	}
	for k, one := range m.fleets {
		if now.Before(one.Until) {
			holds[shown{k, true}] = one.Mute
		}
	}
	began, ended := difference(m.shown, holds)
	if len(began)+len(ended) == 0 {
		return
	}
	m.shown = holds
	all := make([]service.Mute, 0, len(holds))
	for _, one := range holds {
		all = append(all, one)
	}
	slices.SortFunc(all, compare)
	m.cfg.OnMutes(now, all)
	m.poke()
	m.tell(now, by, began, ended)
}

// difference says which mutes are new or others than before, and which are no more.
func difference(was, is map[shown]service.Mute) (began, ended []service.Mute) {
	for k, one := range is {
		if old, ok := was[k]; !ok || !same(old, one) {
			began = append(began, one)
		}
	}
	for k, one := range was {
		if _, ok := is[k]; !ok {
			ended = append(ended, one)
		}
	}
	slices.SortFunc(began, compare)
	slices.SortFunc(ended, compare)
	return began, ended
}

func same(a, b service.Mute) bool {
	if !a.Since.Equal(b.Since) || !a.Until.Equal(b.Until) {
		return false
	}
	a.Since, a.Until = b.Since, b.Until
	return a == b
}

func (m *Mutes) tell(now time.Time, by string, began, ended []service.Mute) {
	told, untold := 0, 0
	say := func(one *service.Mute, detail string) {
		if told++; told > toldAtOnce {
			untold++
			return
		}
		m.log.Info("mutes changed", "service", one.Service, "backend", one.Addr, "change", detail)
		m.event(now, one.Service, one.Addr.String(), detail)
	}
	for i := range began {
		say(&began[i], "muted "+began[i].Cause())
	}
	for i := range ended {
		one := &ended[i]
		switch {
		case !now.Before(one.Until):
			say(one, "no longer muted, the time is over: it was "+one.Cause())
		case by != "":
			say(one, "unmuted by "+by+": it was muted "+one.Cause())
		default:
			say(one, "unmuted: it was muted "+one.Cause())
		}
	}
	if untold > 0 {
		m.log.Info("more mutes changed", "count", untold)
		m.event(now, "", "", fmt.Sprintf("%d more mutes began or ended", untold))
	}
}

func (m *Mutes) event(now time.Time, name, backend, detail string) {
	if m.cfg.Events != nil {
		m.cfg.Events.Add(event.Event{Time: now, Kind: event.Mute, Service: name, Backend: backend, Detail: detail})
	}
}
