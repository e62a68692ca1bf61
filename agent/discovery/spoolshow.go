package discovery

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// ReadSpool returns the lists of a spool, for a look while there is no agent: sorted by service, each as it was confirmed last. It changes nothing. Files that can't be read are
// named in unread, each with why; the error says that there is no spool, or none for this user.
func ReadSpool(dir string) (lists []*service.List, unread []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read the spool: %w", err)
	}
	var r spoolReader
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), listSuffix) {
			continue
		}
		data, mod, err := readSpoolFile(filepath.Join(dir, e.Name()), nil)
		if err == nil {
			var l *service.List
			if l, _, err = r.any(data); err == nil {
				if mod.After(l.Confirmed) {
					l.Confirmed = mod
				}
				lists = append(lists, l)
			}
		}
		if err != nil {
			unread = append(unread, fmt.Sprintf("%s: %v", e.Name(), err))
		}
	}
	slices.SortFunc(lists, func(a, b *service.List) int { return strings.Compare(a.Service, b.Service) })
	return lists, unread, nil
}
