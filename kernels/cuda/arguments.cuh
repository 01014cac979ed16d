// What a launch is given; mirrored field by field in kernels/persistent.py.
#pragma once
#include <device.cuh>

// As kernels/native.py numbers them.
enum Pattern { ROW, COLUMN, PREVIOUS_ROW, DENSE, LYRICS, CROSS };

struct Matrix {
  const void *weight;  // output by output
  const float *bias, *scale;
};

struct Layer {
  const float *norm_0_weight, *norm_0_bias, *norm_1_weight, *norm_1_bias;
  Matrix qkv, proj, up, down;
  void *kv;  // [2, BATCH, HEADS, slots, HEAD_DIM]
  int pattern, slots;
  int part;  // keys of a part of its attention
  int projected;  // 3: queries, keys, values; 1: queries, the keys and values being lyrics'
};

struct Arguments {
  const Layer *layers;
  const void *head_weight;      // [CODES, WIDTH]
  const void *token_embedding;  // [CODES or more, WIDTH]
  const void *pos_embedding;    // [CONTEXT, WIDTH]
  const float *head_scale;
  const void *frame_cond, *head_cond;  // [BATCH, CONTEXT, WIDTH] or null: into the first layer, into the head
  float *x;                            // [BATCH, WIDTH]: what the first position takes in; then, what the next one does
  long long *codes;                    // [BATCH, CONTEXT]
  const long long *items, *noise_key;  // [BATCH]; low and high half of the seed, level, place of the window
  const float *filters;                // temperature, top-k, top-p
  Word *qkv, *parts, *h, *hidden, *x_words, *logits, *drawn;
  int depth, start, steps;
  unsigned tag;  // the first of the launch; each step takes depth + 1 of them
  float res_scale;
};
