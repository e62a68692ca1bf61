package registrar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"
)

// A state file is one line that says what follows, and JSON, which another release reads as far as it knows the names.
const (
	fileMagic    = "lbagent registrations 1"
	maxStateFile = 16 << 20
)

var errTorn = errors.New("not registrations that can be read")

// state is what outlives the process (5.3).
type state struct {
	Leases        []int64   `json:"leases,omitempty"` // the one in use first
	TTL           int64     `json:"ttl,omitempty"`    // of that, in seconds
	Cluster       uint64    `json:"cluster,omitempty"`
	Keys          []keyFile `json:"keys,omitempty"`
	Registrations []regFile `json:"registrations,omitempty"`
	Drains        []drain   `json:"drains,omitempty"`
	Withdrawn     bool      `json:"withdrawn,omitempty"` // only for an upgrade: a start announces again
}

// keyFile is a key that this host wrote, or was about to write.
type keyFile struct {
	Key    string `json:"key"`
	Create int64  `json:"create,omitempty"`
}

// regFile is a registration that came by the API.
type regFile struct {
	Registration

	UID  uint32 `json:"uid"`
	Hold bool   `json:"hold,omitempty"`
}

// drain is a service that is out of service on this host.
type drain struct {
	Service string `json:"service"`
	Remove  bool   `json:"remove,omitempty"`
}

func encodeState(s *state) ([]byte, error) {
	body, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return nil, err
	}
	head := fmt.Sprintf("%s %016x\n", fileMagic, xxhash.Sum64(body))
	return append([]byte(head), body...), nil
}

func decodeState(data []byte) (*state, error) {
	head, body, _ := bytes.Cut(data, []byte("\n"))
	if string(head) != fmt.Sprintf("%s %016x", fileMagic, xxhash.Sum64(body)) {
		return nil, errTorn
	}
	s := &state{}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("%w: %w", errTorn, err)
	}
	return s, nil
}

// loadState reads path; an error that is fs.ErrNotExist says that there is none. A file that can't be read is set aside.
func loadState(path string) (*state, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxStateFile+1))
	if err == nil && len(data) > maxStateFile {
		err = errTorn
	}
	if err == nil {
		var s *state
		if s, err = decodeState(data); err == nil {
			return s, nil
		}
	}
	return nil, errors.Join(err, os.Rename(path, path+".bad"))
}

// saveState replaces path as a whole.
func saveState(path string, data []byte) error {
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
