// SPDX-License-Identifier: Apache-2.0

package integration

import "google.golang.org/grpc/codes"

// Sets of codes that a test takes.
var (
	notFound = []codes.Code{codes.NotFound}
	invalid  = []codes.Code{codes.InvalidArgument}
	missing  = []codes.Code{codes.InvalidArgument, codes.NotFound}
	wrong    = []codes.Code{codes.FailedPrecondition}
	failures = []codes.Code{codes.Unknown, codes.Internal, codes.FailedPrecondition, codes.Unavailable}
)
