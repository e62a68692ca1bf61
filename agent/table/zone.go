package table

import (
	"fmt"

	"github.com/lbagent/lbagent/agent/picker"
)

const (
	// across is the share of calls that leaves the own zone in any case (3.8): so it is known how the others are before they are needed.
	across = 0.02

	// zonesMost bounds the zones that are told apart; all further ones count as one.
	zonesMost = 64

	ownZone = 0 // the number of the zone of this host, if it has one
)

// zoneCounts counts backends by the number of their zone.
type zoneCounts [zonesMost]int

// zoneOf is the number of a zone by its name; the one of this host is ownZone. Backends that don't say where they are, are in a zone of their own. Guarded by Table.mu.
func (s *Service) zoneOf(name string) uint8 {
	own := s.Spec().Zone
	if own != "" && name == own {
		return ownZone
	}
	for i, known := range s.zones {
		if known == name {
			return uint8(i + 1)
		}
	}
	if len(s.zones) < zonesMost-2 {
		s.zones = append(s.zones, name)
		return uint8(len(s.zones))
	}
	return zonesMost - 1
}

// rezone numbers all zones anew: this host is in another one.
func (s *Service) rezone(e *edit) {
	s.zones = nil
	for k := range e.chunks {
		backends := e.writeChunk(k)
		for i := range backends {
			backends[i].zone = s.zoneOf(backends[i].Zone)
		}
	}
}

// farFactor is the zone factor of a tier's candidates in other zones, which keeps as many calls in this host's zone as that can take: all but 2 %, while its usable share
// x 1.4 is 100 % and more; beyond that they spill (3.8). all and usable count the tier's backends, also those that are not in the subset. The factor goes by the static
// weights of the candidates, here and elsewhere, so that a zone whose backends lose weight for another reason loses calls with it.
func farFactor(weights [2]float64, all, usable *zoneCounts) float32 {
	var far, farUsable int
	for i := ownZone + 1; i < zonesMost; i++ {
		far += all[i]
		farUsable += usable[i]
	}
	if usable[ownZone] == 0 || farUsable == 0 || weights[0] == 0 || weights[1] == 0 {
		return 1 // all the same: nobody here, or nobody elsewhere
	}
	loads, _ := picker.Spill([]float64{portion(usable[ownZone], all[ownZone]), portion(farUsable, far)})
	own := min(loads[0], 1-across)
	return float32((1 - own) / own * weights[0] / weights[1])
}

// portion is what part of all those are.
func portion(n, all int) float64 { return float64(n) / float64(max(1, all)) }

// ZoneWords says for a person that fewer calls than usual stay in this host's zone, and why; empty if all is as it should be. gone says that none do, although the zone has backends.
func (v *View) ZoneWords() (words string, gone bool) {
	spec := v.Service.Spec()
	if spec.Zone == "" || spec.Policy == picker.Hash || v.Fallback {
		return "", false
	}
	var own, ownUsable, farUsable int
	for _, b := range v.roster.each() {
		switch usable := b.Verdict.Usable(); {
		case b.Fallback, b.Draining: // no loss of the zone
		case b.Zone != spec.Zone && usable:
			farUsable++
		case b.Zone == spec.Zone:
			own++
			if usable {
				ownUsable++
			}
		}
	}
	switch {
	case own == 0 || farUsable == 0:
		return "", false
	case ownUsable == 0:
		return fmt.Sprintf("this host's zone %s has no usable backend (of %d): all calls go to other zones", spec.Zone, own), true
	case spills(ownUsable, own):
		return fmt.Sprintf("this host's zone %s has %d of %d backends usable: some calls go to other zones", spec.Zone, ownUsable, own), false
	}
	return "", false
}

// spills reports whether a zone that has lost so many can't take all calls any more.
func spills(usable, all int) bool {
	loads, _ := picker.Spill([]float64{portion(usable, all), 1})
	return loads[0] < 1
}
