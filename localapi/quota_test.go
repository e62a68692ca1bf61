package localapi

import "testing"

// Each has a bound, all have one, and who has next to nothing gets it when others have taken all.
func TestQuota(t *testing.T) {
	q := newQuota(10, 6, 2)
	a, b, c := caller{uid: 1}, caller{uid: 2}, caller{uid: 3}
	for i, step := range []struct {
		who  caller
		n    int
		want over
		held int
	}{
		{a, 6, within, 6}, {a, 1, overOwn, 6}, {a, 0, within, 6},
		{b, 4, within, 10}, {b, 1, overAll, 10},
		{c, 2, within, 12}, {c, 1, overAll, 12}, {c, 0, within, 12},
		{b, -2, within, 10}, // is given back
		{b, 1, overAll, 10}, {c, -2, within, 8}, {b, 2, within, 10},
		{a, -6, within, 4}, {b, -4, within, 0},
	} {
		got := within
		if step.n < 0 {
			q.give(step.who, -step.n)
		} else {
			got = q.take(step.who, step.n)
		}
		if got != step.want || q.held() != step.held {
			t.Fatalf("step %d: %v, %d held; want %v, %d", i, got, q.held(), step.want, step.held)
		}
	}
	if len(q.of) != 0 {
		t.Errorf("it remembers %v", q.of)
	}
}
