package service

import (
	"strings"
	"testing"
)

func TestValidName(t *testing.T) {
	for _, name := range []string{"user", "a", "A-z0.9_:@-", "user.rpc", "...", strings.Repeat("x", MaxNameLength)} {
		if !ValidName(name) {
			t.Errorf("%q was refused", name)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "a b", "ä", "a\x00", "a\n", strings.Repeat("x", MaxNameLength+1)} {
		if ValidName(name) {
			t.Errorf("%q was taken", name)
		}
	}
}
