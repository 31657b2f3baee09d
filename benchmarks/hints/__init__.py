"""Whether hints are right: guests whose need is known, and what others would have said."""
