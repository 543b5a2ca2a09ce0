// Everything: the doors and every policy. Adaptors to other libraries are in heed/interop/ and are included by name.
#pragma once

#include <heed/accumulate/dropout.hpp>
#include <heed/accumulate/merge.hpp>
#include <heed/accumulate/observe.hpp>
#include <heed/accumulate/softmax.hpp>
#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/gradient.hpp>
#include <heed/kernel/dual.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/mask/block.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/power.hpp>
#include <heed/mask/rectangles.hpp>
#include <heed/mask/view.hpp>
#include <heed/mask/window.hpp>
#include <heed/reference.hpp>
#include <heed/score/bias.hpp>
#include <heed/score/rotary.hpp>
#include <heed/score/score.hpp>
#include <heed/select/selection.hpp>
#include <heed/select/top_k.hpp>
#include <heed/tensor/segments.hpp>
#include <heed/tensor/view.hpp>
