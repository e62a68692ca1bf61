package admin

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// metrics sends metrics to a scrape.
type metrics struct{ out chan<- prometheus.Metric }

// put sends a gauge or a counter, as its desc says.
func (m metrics) put(d *desc, v float64, labels ...string) {
	t := prometheus.GaugeValue
	if d.kind == counter {
		t = prometheus.CounterValue
	}
	m.send(d)(prometheus.NewConstMetric(d.Desc, t, v, labels...))
}

// send takes what a constructor returns: a metric that can't be made shows as an error of the scrape, and hides no other.
func (m metrics) send(d *desc) func(prometheus.Metric, error) {
	return func(metric prometheus.Metric, err error) {
		if err != nil {
			metric = prometheus.NewInvalidMetric(d.Desc, err)
		}
		m.out <- metric
	}
}

// The native buckets of a Histogram: those of schema 2, and what counts as nothing. They are agent/proxy's.
const (
	nativeSchema    = 2
	nativeKey       = -79 // of the first
	nativeThreshold = 1.0 / (1 << 20)
)

// histogram sends h in one form, or in both: Prometheus takes native buckets where it knows them, and the classic ones else.
func (m metrics) histogram(d *desc, bounds []time.Duration, h Histogram, labels ...string) {
	var count uint64
	buckets := make(map[float64]uint64, len(bounds))
	for i, n := range h.Buckets {
		count += n
		if i < len(bounds) {
			buckets[bounds[i].Seconds()] = count
		}
	}
	classic, err := prometheus.NewConstHistogram(d.Desc, count, h.Sum.Seconds(), buckets, labels...)
	if err != nil || h.Native == nil {
		m.send(d)(classic, err)
		return
	}
	filled := make(map[int]int64)
	for i, n := range h.Native {
		if n > 0 {
			filled[nativeKey+i] = int64(n)
		}
	}
	native, err := prometheus.NewConstNativeHistogram(d.Desc, count, h.Sum.Seconds(), filled, nil, h.None, nativeSchema, nativeThreshold, time.Time{}, labels...)
	m.send(d)(bothForms{classic, native}, err)
}

// bothForms is a histogram with classic and with native buckets, which client_golang makes only of its own ones.
type bothForms struct {
	prometheus.Metric
	native prometheus.Metric
}

// Write implements prometheus.Metric.
func (b bothForms) Write(out *dto.Metric) error {
	if err := b.Metric.Write(out); err != nil {
		return err
	}
	var native dto.Metric
	if err := b.native.Write(&native); err != nil {
		return err
	}
	to, from := out.GetHistogram(), native.GetHistogram()
	to.Schema, to.ZeroThreshold, to.ZeroCount = from.Schema, from.ZeroThreshold, from.ZeroCount
	to.PositiveSpan, to.PositiveDelta = from.GetPositiveSpan(), from.GetPositiveDelta()
	return nil
}
