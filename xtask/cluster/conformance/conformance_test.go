// Package conformance is Gateway API's own conformance suite with what its flags do not offer.
package conformance

import (
	"os"
	"strconv"
	"testing"
	"time"

	"sigs.k8s.io/gateway-api/conformance"
)

// How often in a row an answer has to be right. The suite's 3 lets traffic that is not meshed pass by luck.
const consecutive = "NODEMESH_CONSECUTIVE_SUCCESSES"

// How long an answer may take to become right.
const patience = "NODEMESH_MAX_TIME_TO_CONSISTENCY"

func TestConformance(t *testing.T) {
	options := conformance.DefaultOptions(t)
	if text := os.Getenv(consecutive); text != "" {
		times, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%s: %v", consecutive, err)
		}
		options.TimeoutConfig.RequiredConsecutiveSuccesses = times
	}
	if text := os.Getenv(patience); text != "" {
		duration, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("%s: %v", patience, err)
		}
		options.TimeoutConfig.MaxTimeToConsistency = duration
	}
	conformance.RunConformanceWithOptions(t, options)
}
