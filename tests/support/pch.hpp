#include "catch.hpp"

#include <heed/heed.hpp>
